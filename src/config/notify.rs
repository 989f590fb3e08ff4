//! The settings of the notifications.

use super::{ConfigErrors, Problems};
use crate::cli::notify::{NotifyArgs, NotifyFormat, NotifyTestArgs};
use crate::notify::{NotifyConfig, NotifyUrl};

/// Each receiver has a task and a queue.
const MAX_URLS: usize = 16;

pub(super) fn settings(
    args: &NotifyArgs,
    node_id: &str,
    cluster: Option<String>,
    problems: &mut Problems,
) -> NotifyConfig {
    let NotifyArgs { notify_url, notify_secret_file, notify_format } = args;
    problems.check(notify_url.len() <= MAX_URLS, || {
        format!("--notify-url must be given at most {MAX_URLS} times")
    });
    let mut urls = Vec::new();
    for (number, text) in (1..).zip(notify_url) {
        match NotifyUrl::parse(text) {
            Ok(url) => urls.push(url),
            // The text may be a secret.
            Err(why) => problems.add(format!("--notify-url, number {number}, {why}")),
        }
    }
    let is_unsigned = *notify_format == NotifyFormat::Standard && notify_secret_file.is_none();
    problems.check(notify_url.is_empty() || !is_unsigned, || {
        "--notify-url needs --notify-secret-file, unless --notify-format is slack: receivers must be able to check the sender".to_owned()
    });
    problems.check(!notify_url.is_empty() || notify_secret_file.is_none(), || {
        "--notify-secret-file needs --notify-url".to_owned()
    });
    NotifyConfig {
        urls,
        format: *notify_format,
        secret_file: notify_secret_file.clone(),
        node_id: node_id.to_owned(),
        cluster,
    }
}

/// The settings of `notify test`.
pub(crate) fn of_command(args: &NotifyTestArgs) -> Result<NotifyConfig, ConfigErrors> {
    let mut problems = Problems::default();
    problems.check(!args.notify.notify_url.is_empty(), || "--notify-url is required".to_owned());
    let settings = settings(&args.notify, &args.node_id, None, &mut problems);
    problems.into_result()?;
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;
    use crate::config::Config;

    fn config(args: &[&str]) -> Result<NotifyConfig, String> {
        let cli = Cli::try_parse_from([&["replicator"], args].concat()).unwrap();
        Config::from_args(&cli.daemon).map(|config| config.notify).map_err(|why| why.to_string())
    }

    #[test]
    fn receivers_are_repeated_or_separated_by_commas_and_never_shown() {
        let signed =
            ["--notify-secret-file", "f", "--notify-url", "https://a/hidden,http://b:1/hidden"];
        let config = config(&[&signed[..], &["--notify-url", "http://c/hidden"]].concat()).unwrap();
        let shown: Vec<_> = config.urls.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["https://a", "http://b:1", "http://c"]);
        assert!(!format!("{config:?}").contains("hidden"), "{config:?}");
    }

    #[test]
    fn an_invalid_or_unsigned_receiver_is_refused_without_its_text() {
        let many = vec!["http://h/hidden"; 17].join(",");
        for (args, word) in [
            (
                &["--notify-url", "hidden", "--notify-format", "slack"][..],
                "number 1, must be a URL",
            ),
            (
                &["--notify-url", "ftp://h/hidden", "--notify-format", "slack"],
                "must start with http",
            ),
            (&["--notify-url", "http://h/hidden"], "needs --notify-secret-file"),
            (&["--notify-url", &many, "--notify-format", "slack"], "at most 16 times"),
            (&["--notify-secret-file", "f"], "needs --notify-url"),
        ] {
            let text = config(args).unwrap_err();
            assert!(text.contains(word) && !text.contains("hidden"), "{args:?}: {text}");
        }
        assert!(config(&["--notify-url", "http://h", "--notify-format", "slack"]).is_ok());
    }
}
