//! A browser without a window, driven as a person would: Debian's chromium, which `tests/run`
//! installs with its driver.

use std::io::{BufRead, BufReader, Read};
use std::mem::ManuallyDrop;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::prelude::*;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{PATIENCE, client, wait_until};

/// A browser with one page.
pub struct Browser {
    /// Never dropped: it would ask the driver to end the session, and wait for that on the thread
    /// that has to bring the answer. What ends the session is the end of the process.
    driver: ManuallyDrop<WebDriver>,
    _process: Driver,
    _profile: TempDir,
    _turn: SemaphorePermit<'static>,
}

/// A browser is a dozen processes: more than two at once take more from each other than a small
/// machine has.
static TURNS: Semaphore = Semaphore::const_new(2);

/// The process of the driver. The browser ends with it, whatever has become of the test.
struct Driver(Child);

impl Driver {
    fn start(scratch: &Path) -> (Self, u16) {
        // Killed as well when the test is, by whoever has lost patience with it.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "chromedriver", "--port=0"])
            // What a browser that is killed leaves behind goes with the profile.
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
        // Its group: the driver, the browser and all that the browser has started.
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
        // Root, as in a container, has no sandbox; what is opened is ours.
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

    /// A command of the browser's own protocol.
    async fn devtools(&self, command: &str, arguments: Value) {
        self.driver.cdp().send_raw(command, arguments).await.unwrap();
    }

    /// As on a screen of that width.
    pub async fn be_wide(&self, pixels: u32) {
        let size = json!({ "width": pixels, "height": 800, "deviceScaleFactor": 1, "mobile": pixels < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// As on a system whose theme is `light` or `dark`.
    pub async fn prefer(&self, theme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": theme }] });
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// What a script gives.
    pub async fn eval(&self, expression: &str) -> Value {
        let script = format!("return {expression};");
        self.driver.execute(script, vec![]).await.unwrap().json().clone()
    }

    /// Waits until an expression is true.
    pub async fn until(&self, expression: &str) {
        wait_until(expression, || async { (self.eval(expression).await == true).then_some(()) })
            .await;
    }

    /// Waits until the element that a selector names is seen, and says so.
    pub async fn until_says(&self, selector: &str, text: &str) {
        let (selector, text) = (json!(selector), json!(text));
        self.until(&format!(
            "[...document.querySelectorAll({selector})].some((e) => e.checkVisibility() && e.innerText.includes({text}))"
        ))
        .await;
    }

    /// Clicks the first element of a selector that is seen and not disabled, once there is one.
    pub async fn click(&self, selector: &str) {
        wait_until(&format!("{selector} can be clicked"), || async {
            for element in self.driver.find_all(By::Css(selector)).await.unwrap() {
                // It may be drawn anew just now, or lie under something that goes away.
                if element.is_clickable().await.unwrap_or(false) && element.click().await.is_ok() {
                    return Some(());
                }
            }
            None
        })
        .await;
    }

    /// Types into a field.
    pub async fn fill(&self, selector: &str, text: &str) {
        let field = self.driver.find(By::Css(selector)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Presses a key, wherever the focus is.
    pub async fn press(&self, key: Key) {
        self.driver.action_chain().send_keys(key).perform().await.unwrap();
    }

    /// What the browser complained about since the last time.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.driver.browser_log().await.unwrap();
        let bad =
            entries.into_iter().filter(|entry| entry.level != "INFO" && entry.level != "DEBUG");
        bad.map(|entry| format!("{} {}", entry.level, entry.message)).collect()
    }
}
