//! `replicator notify test`: one notification to each receiver, and its answer.

use std::process::ExitCode;

use clap::{CommandFactory, error::ErrorKind};

use super::output::{self, fail};
use crate::cli::Cli;
use crate::cli::notify::{NotifyCommand, NotifyCommandArgs, NotifyTestArgs};
use crate::config::notify_of_command;
use crate::notify::{self, NotifyUrl, POST_TIMEOUT, PostAnswer, PostError};
use crate::replica::http_client;
use crate::text::plain;

pub(super) async fn run(args: &NotifyCommandArgs) -> ExitCode {
    let NotifyCommand::Test(args) = &args.command;
    test(args).await
}

async fn test(args: &NotifyTestArgs) -> ExitCode {
    let config = match notify_of_command(args) {
        Ok(config) => config,
        Err(errors) => {
            output::say_invalid(&Cli::command().error(ErrorKind::ValueValidation, errors));
            return ExitCode::from(2);
        }
    };
    let http = match http_client(POST_TIMEOUT) {
        Ok(http) => http,
        Err(error) => return fail(&error),
    };
    let answers = match notify::test(&config, &http).await {
        Ok(answers) => answers,
        Err(error) => return fail(&error),
    };
    let accepted =
        answers.iter().all(|(_, answer)| answer.as_ref().is_ok_and(PostAnswer::is_success));
    let text: String = answers.iter().map(line).collect();
    let code = if accepted { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    output::exit_code(output::print(text.as_bytes()), code)
}

fn line((url, answer): &(NotifyUrl, Result<PostAnswer, PostError>)) -> String {
    let answer = match answer {
        Ok(answer) => {
            let verb = if answer.is_success() { "accepted" } else { "refused" };
            let body: String = answer.body.trim().chars().take(200).collect();
            let body = if body.is_empty() { body } else { format!(": {}", plain(&body)) };
            format!("{verb}, status {}{body}", answer.status)
        }
        Err(error) => format!("no answer: {}", plain(&error.to_string())),
    };
    format!("{url}  {answer}\n")
}
