//! A request on its way through a router.

use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Uri};
use http_body::Body as _;
use hyper::ext::Protocol;

use crate::body::{self, Back, Body, Loan};
use crate::failure::{Failure, Kind};
use crate::head;
use crate::table;

/// A request, so that it can be sent more than once while nothing of it is gone.
pub(crate) struct Job {
    pub(crate) method: Method,
    pub(crate) path: PathAndQuery,
    pub(crate) authority: Authority,
    /// The host without its port, in small letters.
    pub(crate) host: String,
    /// Without those for one connection.
    pub(crate) headers: HeaderMap,
    /// The protocol that the client asks to switch to.
    pub(crate) upgrade: Option<HeaderValue>,
    body: Content,
}

enum Content {
    /// There is none, and never was.
    None,
    /// None of it was read.
    Whole(Body),
    /// It is given away.
    Gone,
}

/// What an attempt was given.
pub(crate) struct Given(Option<Loan>);

impl Job {
    pub(crate) fn new(
        method: Method,
        path: PathAndQuery,
        (authority, host): (Authority, String),
        headers: HeaderMap,
        upgrade: Option<HeaderValue>,
        body: Body,
        patience: Duration,
    ) -> Self {
        let body = match body.is_end_stream() || upgrade.is_some() {
            true => Content::None,
            false => Content::Whole(body::Paced::around(body, patience)),
        };
        Self {
            method,
            path,
            authority,
            host,
            headers,
            upgrade,
            body,
        }
    }

    /// Whether it can be sent (again).
    pub(crate) fn is_whole(&self) -> bool {
        !matches!(self.body, Content::Gone)
    }

    fn lend(&mut self) -> (Given, Body) {
        match std::mem::replace(&mut self.body, Content::Gone) {
            Content::None => {
                self.body = Content::None;
                (Given(None), body::empty())
            }
            Content::Whole(body) => {
                let (loan, body) = Loan::of(body);
                (Given(Some(loan)), body)
            }
            Content::Gone => (Given(None), body::empty()),
        }
    }

    /// An attempt failed: what it did not read is here again. Says why it failed, where that is
    /// the request's own body.
    pub(crate) fn take_back(&mut self, given: Given, failure: Failure) -> Failure {
        match given.0.map(Loan::back) {
            Some(Back::Whole(body)) => self.body = Content::Whole(body),
            Some(Back::Broke) => return Failure::sent(Kind::Body),
            Some(Back::Gone) | None => {}
        }
        failure
    }

    fn uri(&self, authority: &str) -> Result<Uri, Failure> {
        Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(authority)
            .path_and_query(self.path.clone())
            .build()
            .map_err(|_| Failure::not_sent(Kind::Malformed))
    }

    /// For a pod at `address`.
    pub(crate) fn for_pod(
        &mut self,
        protocol: table::Protocol,
        address: &str,
    ) -> Result<(Given, Request<Body>), Failure> {
        // Over HTTP/1.1 the pool goes by the address, and the host is a header. Over HTTP/2 it is
        // the target itself, without the port, which a client may choose as it likes.
        let uri = match protocol {
            table::Protocol::Http1 => self.uri(address)?,
            table::Protocol::H2c => self.uri(&self.host)?,
        };
        let (given, body) = self.lend();
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        *headers = self.headers.clone();
        if protocol == table::Protocol::Http1 {
            if let Ok(host) = HeaderValue::from_str(self.authority.as_str()) {
                headers.insert(HOST, host);
            }
            if let Some(protocol) = &self.upgrade {
                headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(UPGRADE, protocol.clone());
            }
        } else {
            headers.remove(HOST);
        }
        Ok((given, request))
    }

    /// For the router of a pod's node.
    pub(crate) fn for_peer(
        &mut self,
        service: &str,
        pod: &str,
        left_us: u64,
    ) -> Result<(Given, Request<Body>), Failure> {
        let uri = self.uri(self.authority.as_str())?;
        let (given, body) = self.lend();
        let mut request = Request::new(body);
        *request.uri_mut() = uri;
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = self.headers.clone();
        match self.upgrade.as_ref().and_then(|value| value.to_str().ok()) {
            Some(protocol) => {
                *request.method_mut() = Method::CONNECT;
                request.extensions_mut().insert(Protocol::from(protocol));
            }
            None => *request.method_mut() = self.method.clone(),
        }
        let headers = request.headers_mut();
        headers.remove(HOST);
        let text = |text: &str| {
            HeaderValue::from_str(text).map_err(|_| Failure::not_sent(Kind::Malformed))
        };
        headers.insert(head::SERVICE, text(service)?);
        headers.insert(head::POD, text(pod)?);
        headers.insert(head::LEFT_US, HeaderValue::from(left_us));
        Ok((given, request))
    }
}
