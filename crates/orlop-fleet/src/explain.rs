//! `orlop-fleet explain`: where the pods of a service are wanted, and why.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use placer::explain::Explained;
use placer::pages::SERVICES;

/// How long the loop may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// An answer is no larger.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// Arguments of `orlop-fleet explain`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The service: its Seika, NAMESPACE/NAME, or NAME in the namespace default.
    service: String,
    /// Where a loop serves its pages.
    #[arg(
        long,
        env = "ORLOP_PLACE_METRICS_ADDR",
        default_value = "127.0.0.1:2388",
        value_name = "HOST:PORT"
    )]
    addr: String,
    /// What is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What is printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Tables.
    Text,
    /// All of it, for programs.
    Json,
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(
        "no loop answers at {addr}: {source}; is `orlop-fleet place` running, and is --addr its --metrics-addr?"
    )]
    Silent {
        addr: String,
        source: std::io::Error,
    },
    #[error("{0}")]
    Refused(String),
    #[error("{addr} does not answer as a loop does: {why}")]
    Answer { addr: String, why: String },
}

/// Runs it; the exit code is 1 after an error, which is printed.
pub(crate) fn run(args: &Args) -> ExitCode {
    match args.explain() {
        Ok(text) => {
            // A reader that has gone away (`| head`) is no failure.
            let _ = write!(std::io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "orlop-fleet explain: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Args {
    fn explain(&self) -> Result<String, Failure> {
        let key = match self.service.contains('/') {
            true => self.service.clone(),
            false => format!("default/{}", self.service),
        };
        let answer = |why: String| Failure::Answer {
            addr: self.addr.clone(),
            why,
        };
        if !key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"/-._".contains(&b))
        {
            return Err(Failure::Refused(format!(
                "{key:?} is no name of a Seika: NAMESPACE/NAME"
            )));
        }
        let (status, body) =
            self.get(&format!("{SERVICES}/{key}"))
                .map_err(|source| Failure::Silent {
                    addr: self.addr.clone(),
                    source,
                })?;
        match status {
            200 => {}
            404 => return Err(Failure::Refused(body.trim().to_owned())),
            other => return Err(answer(format!("HTTP {other}"))),
        }
        if self.output == Output::Json {
            return Ok(body);
        }
        let explained: Explained =
            serde_json::from_str(&body).map_err(|error| answer(error.to_string()))?;
        Ok(explained.to_string())
    }

    /// One request over a connection of its own: a page on the way of the loop's own code.
    fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(&self.addr)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.addr
        );
        stream.write_all(request.as_bytes())?;
        let mut bytes = Vec::new();
        stream.take(MAX_ANSWER_BYTES).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text
            .split_once("\r\n\r\n")
            .ok_or_else(|| std::io::Error::other("half an answer"))?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other("it does not speak HTTP"))?;
        Ok((status, body.to_owned()))
    }
}
