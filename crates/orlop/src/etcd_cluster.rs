//! How a command reaches somebody's etcd.

use std::path::Path;
use upstream::{Endpoint, Settings, User};
use wire::ClientTlsConfig;

/// What a command line says of a cluster.
pub(crate) struct Reached<'a> {
    pub(crate) endpoints: Option<&'a str>,
    pub(crate) cacert: Option<&'a Path>,
    pub(crate) cert: Option<&'a Path>,
    pub(crate) key: Option<&'a Path>,
    pub(crate) user: Option<&'a str>,
    pub(crate) password: Option<&'a str>,
}

impl Reached<'_> {
    /// Whom to ask, and how; or a sentence on what is wrong.
    pub(crate) fn settings(&self) -> Result<Settings, String> {
        let Some(endpoints) = self.endpoints else {
            return Err(
                "--endpoints must name the members of the etcd cluster, as in \
                 --endpoints=https://a:2379,https://b:2379,https://c:2379"
                    .to_owned(),
            );
        };
        let mut settings = Settings::new(Endpoint::list(endpoints).map_err(|e| e.to_string())?);
        let identity = self.cert.zip(self.key);
        settings.tls = self.cacert.map(|ca_file| ClientTlsConfig {
            ca_file: ca_file.to_owned(),
            identity: identity.map(|(cert, key)| (cert.to_owned(), key.to_owned())),
            server_name: None,
        });
        if let Some(user) = self.user {
            let (name, password) = match (user.split_once(':'), self.password) {
                (Some((name, password)), None) => (name, password),
                (None, Some(password)) => (user, password),
                _ => return Err("give the password with --user or with --password".to_owned()),
            };
            settings.user = Some(User {
                name: name.to_owned(),
                password: password.to_owned(),
            });
        }
        Ok(settings)
    }
}
