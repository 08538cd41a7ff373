//! The way to a cluster's API.

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// A client by a kubeconfig; without one by KUBECONFIG, `~/.kube/config`, or the pod's
/// ServiceAccount.
///
/// `connect_timeout` bounds how long a connection takes; `kube`'s own bound without it.
///
/// # Errors
/// What is wrong with the configuration, in words.
pub(crate) async fn client(
    kubeconfig: Option<&Path>,
    connect_timeout: Option<Duration>,
) -> Result<Client, String> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(|error| format!("{}: {error}", path.display()))?
        }
        None => Config::infer().await.map_err(|error| error.to_string())?,
    };
    if connect_timeout.is_some() {
        config.connect_timeout = connect_timeout;
    }
    Client::try_from(config).map_err(|error| error.to_string())
}

/// This host's name.
pub(crate) fn host() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// A name for this process that no other has, where none was given.
pub(crate) fn identity(given: Option<&str>) -> String {
    let own = || format!("{}-{}", host(), std::process::id());
    given.map_or_else(own, str::to_owned)
}
