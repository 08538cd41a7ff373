//! How a cluster is reached.

use crate::cluster::Timing;
use crate::endpoint::{Endpoint, Scheme};
use crate::error::Error;
use wire::ClientTlsConfig;

/// How a cluster is reached.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Addresses of members: one is enough, all are better, and each should be a member's own.
    pub endpoints: Vec<Endpoint>,
    /// Whom to trust and who to be, where endpoints are https.
    pub tls: Option<ClientTlsConfig>,
    /// A user, where the cluster has auth enabled.
    pub user: Option<User>,
    /// How often members are asked.
    pub timing: Timing,
}

/// A user of etcd.
#[derive(Clone)]
pub struct User {
    /// The user's name.
    pub name: String,
    /// The user's password.
    pub password: String,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("User");
        shown.field("name", &self.name).finish_non_exhaustive()
    }
}

impl Settings {
    /// These endpoints, with the usual timing, and neither TLS nor a user.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Settings {
            endpoints,
            tls: None,
            user: None,
            timing: Timing::default(),
        }
    }

    /// # Errors
    /// If there is no endpoint, or TLS and schemes do not go together.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.endpoints.is_empty() {
            return Err(Error::NoEndpoint);
        }
        for endpoint in &self.endpoints {
            match (endpoint.scheme, &self.tls) {
                (Scheme::Https, None) => return Err(Error::NoAuthority(endpoint.clone())),
                (Scheme::Http, Some(_)) => return Err(Error::NotHttps(endpoint.clone())),
                (Scheme::Http, None) | (Scheme::Https, Some(_)) => {}
            }
        }
        Ok(())
    }
}
