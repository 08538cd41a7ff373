//! The URLs to listen on and to advertise, checked as etcd checks them.

use crate::build::invalid;
use crate::golang::quote;
use crate::settings::Settings;
use crate::{Error, Url, url};

/// The URLs, checked.
pub(crate) struct Listen {
    pub(crate) client: Vec<Url>,
    pub(crate) client_http: Vec<Url>,
    pub(crate) metrics: Vec<Url>,
    pub(crate) admin: Vec<Url>,
    pub(crate) peer: Vec<Url>,
    pub(crate) advertise_client: Vec<Url>,
    pub(crate) advertise_peer: Vec<Url>,
}

impl Listen {
    pub(crate) fn read(settings: &Settings) -> Result<Self, Error> {
        let urls = Self {
            client: settings.urls("listen-client-urls"),
            client_http: settings.urls("listen-client-http-urls"),
            metrics: settings.urls("listen-metrics-urls"),
            admin: settings.urls("listen-admin-urls"),
            peer: settings.urls("listen-peer-urls"),
            advertise_client: settings.urls("advertise-client-urls"),
            advertise_peer: settings.urls("initial-advertise-peer-urls"),
        };
        let bound = [
            &urls.peer,
            &urls.client,
            &urls.client_http,
            &urls.metrics,
            &urls.admin,
        ];
        for url in bound.into_iter().flatten() {
            url.check_bindable().map_err(Error::Invalid)?;
        }
        if let Some(why) = without_host(&urls.advertise_peer) {
            return invalid(format!(
                "--initial-advertise-peer-urls {} must be \"host:port\" ({why})",
                quote(&url::join(&urls.advertise_peer))
            ));
        }
        if let Some(why) = without_host(&urls.advertise_client) {
            return invalid(format!(
                "--advertise-client-urls {} must be in the format \"host:port\", \
                 \"unix:/path/to/socket\" or \"unixs:/path/to/socket\" ({why})",
                quote(&url::join(&urls.advertise_client))
            ));
        }
        // A file need not say it, in etcd.
        let listens = settings.is_set("listen-client-urls") && !settings.from_file;
        if listens && !settings.is_set("advertise-client-urls") {
            return invalid(
                "--advertise-client-urls is required when --listen-client-urls is set explicitly",
            );
        }
        if let Some(url) = urls
            .client_http
            .iter()
            .find(|url| urls.client.contains(url))
        {
            return invalid(format!(
                "cannot bind both --listen-client-urls and --listen-client-http-urls on the same \
                 url {url}"
            ));
        }
        Ok(urls)
    }
}

fn without_host(urls: &[Url]) -> Option<String> {
    urls.iter().find_map(|url| url.check_has_host().err())
}
