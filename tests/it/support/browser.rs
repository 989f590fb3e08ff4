//! A headless browser: Debian's chromium and its driver, which `tests/run` installs.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read};
use std::mem::ManuallyDrop;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::prelude::*;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{PATIENCE, client, wait_until, within};

/// A browser with one page.
pub struct Browser {
    /// Never dropped: its drop asks the driver to end the session and blocks the thread that would
    /// receive the answer. The end of the process ends the session.
    driver: ManuallyDrop<WebDriver>,
    _process: Driver,
    _profile: TempDir,
    _turn: SemaphorePermit<'static>,
}

/// A browser has a dozen processes. More than two browsers at once overload a small machine.
static TURNS: Semaphore = Semaphore::const_new(2);

/// The process of the driver. The browser ends with it, even if the test panics.
struct Driver(Child);

impl Driver {
    fn start(scratch: &Path) -> (Self, u16) {
        // Ends with the test process, even if that is killed.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "chromedriver", "--port=0"])
            // A killed browser leaves files behind; they are removed with the profile.
            .env("TMPDIR", scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("setpriv, of util-linux");
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let driver = Self(child);
        let mut line = String::new();
        // "ChromeDriver was started successfully on port 34567."
        let port = loop {
            line.clear();
            assert!(
                stdout.read_line(&mut line).unwrap() > 0,
                "chromedriver does not start: is chromium-driver installed?"
            );
            if let Some((_, port)) = line.split_once("successfully on port ") {
                break port.trim().trim_end_matches('.').parse().unwrap();
            }
        };
        std::thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
        (driver, port)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The process group: the driver, the browser and its children.
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.0.wait();
    }
}

impl Browser {
    /// Opens a page.
    pub async fn open(url: &str) -> Self {
        let turn = TURNS.acquire().await.unwrap();
        let profile = tempfile::tempdir().unwrap();
        let (process, port) = Driver::start(profile.path());
        let mut wanted = DesiredCapabilities::chrome();
        // As root, in a container, the sandbox does not work. The opened page is ours.
        for flag in ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"] {
            wanted.add_arg(flag).unwrap();
        }
        wanted.add_arg(&format!("--user-data-dir={}", profile.path().display())).unwrap();
        wanted.set("goog:loggingPrefs", json!({ "browser": "ALL" })).unwrap();
        let driver = WebDriver::builder(format!("http://127.0.0.1:{port}"), wanted)
            .client(client())
            .connect()
            .await
            .unwrap();
        let patience = TimeoutConfiguration::new(Some(PATIENCE), Some(PATIENCE), None);
        driver.update_timeouts(patience).await.unwrap();
        let browser = Self {
            driver: ManuallyDrop::new(driver),
            _process: process,
            _profile: profile,
            _turn: turn,
        };
        browser.goto(url).await;
        browser
    }

    pub async fn goto(&self, url: &str) {
        self.driver.goto(url).await.unwrap();
    }

    /// Sends a command of the DevTools protocol.
    async fn devtools(&self, command: &str, arguments: Value) {
        self.driver.cdp().send_raw(command, arguments).await.unwrap();
    }

    /// Emulates a screen of that width.
    pub async fn be_wide(&self, pixels: u32) {
        let size = json!({ "width": pixels, "height": 800, "deviceScaleFactor": 1, "mobile": pixels < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Emulates a system with the theme `light` or `dark`.
    pub async fn prefer(&self, theme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": theme }] });
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// The value of an expression.
    pub async fn eval(&self, expression: &str) -> Value {
        let script = format!("return {expression};");
        self.driver.execute(script, vec![]).await.unwrap().json().clone()
    }

    /// Waits until an expression is true.
    pub async fn until(&self, expression: &str) {
        wait_until(expression, || async { (self.eval(expression).await == true).then_some(()) })
            .await;
    }

    /// Waits until a visible element of the selector contains the text.
    pub async fn until_says(&self, selector: &str, text: &str) {
        let (selector, text) = (json!(selector), json!(text));
        self.until(&format!(
            "[...document.querySelectorAll({selector})].some((e) => e.checkVisibility() && e.innerText.includes({text}))"
        ))
        .await;
    }

    /// Clicks the first element of a selector that is visible, enabled and not covered; waits until
    /// there is one. The page does all of that in one step: a click of the mouse at a position
    /// misses an element that the page moves meanwhile.
    pub async fn click(&self, selector: &str) {
        let click = format!(
            "(() => {{
                let why = 'there is none';
                for (const element of document.querySelectorAll({selector})) {{
                    if (!element.checkVisibility()) {{ why = 'hidden'; continue; }}
                    if (element.disabled) {{ why = 'disabled'; continue; }}
                    element.scrollIntoView({{ block: 'nearest', behavior: 'instant' }});
                    const at = element.getBoundingClientRect();
                    const top = document.elementFromPoint(at.x + at.width / 2, at.y + at.height / 2);
                    if (!element.contains(top)) {{ why = `covered by ${{top?.outerHTML}}`; continue; }}
                    element.focus();
                    element.click();
                    return null;
                }}
                return why;
            }})()",
            selector = json!(selector),
        );
        let why = RefCell::new(Value::Null);
        let clicked = within(PATIENCE, || async {
            *why.borrow_mut() = self.eval(&click).await;
            why.borrow().is_null().then_some(())
        });
        assert!(clicked.await.is_some(), "cannot click {selector}: {}", why.into_inner());
    }

    /// Types into a field.
    pub async fn fill(&self, selector: &str, text: &str) {
        let field = self.driver.find(By::Css(selector)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Presses a key at the current focus.
    pub async fn press(&self, key: Key) {
        self.driver.action_chain().send_keys(key).perform().await.unwrap();
    }

    /// The warnings and errors of the browser since the last call.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.driver.browser_log().await.unwrap();
        let bad =
            entries.into_iter().filter(|entry| entry.level != "INFO" && entry.level != "DEBUG");
        bad.map(|entry| format!("{} {}", entry.level, entry.message)).collect()
    }
}
