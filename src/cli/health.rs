//! `health`: checks whether the running daemon is alive, for containers without a shell.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Failure, settings};

const TIMEOUT: Duration = Duration::from_secs(3);

/// Check whether the running daemon is alive; exit code 0 or 1
///
/// It never fails because of Agora, Kafka or a full disk: a restart would not help.
#[derive(Debug, Args)]
#[command(after_long_help = TEACH)]
pub(super) struct Health {
    /// The daemon's configuration file; environment variables also apply
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

const TEACH: &str = "\
EXAMPLES

  agora-rtm-bridge health --config /etc/agora-rtm-bridge/agora-rtm-bridge.toml
  HEALTHCHECK CMD [\"agora-rtm-bridge\", \"health\"]     in a Dockerfile

  Whether events flow is another question, for which a container must not be
  restarted: curl 127.0.0.1:9464/ready";

pub(super) async fn run(args: Health) -> Result<(), Failure> {
    let settings = settings::load(args.config.as_deref())?;
    let url = format!("http://{}/live", settings.http.listen);
    drop(rustls::crypto::ring::default_provider().install_default());
    let answered = async {
        let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        client.get(&url).send().await
    };
    match answered.await {
        Ok(response) if response.status().is_success() => Ok(()),
        Ok(response) => {
            Err(Failure { message: format!("{url} answered {}", response.status()), code: 1 })
        }
        Err(error) => Err(Failure::of(&error)),
    }
}
