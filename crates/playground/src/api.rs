//! The Kubernetes API as JSON over HTTPS: no more than the tests need.

use std::path::Path;

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use crate::http::Client;
use crate::metrics::Metrics;
use crate::{Error, Result};

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";

/// One apiserver, and who we are to it.
#[derive(Debug)]
pub struct Api {
    client: Client,
}

impl Api {
    /// The apiserver at `port` of 127.0.0.1.
    ///
    /// # Errors
    /// If the authority's certificate cannot be read.
    pub fn new(port: u16, ca_cert: &Path, token: &str) -> Result<Self> {
        Ok(Self {
            client: Client::tls(port, ca_cert, token)?,
        })
    }

    /// The HTTP client below, for what has no call of its own here.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Value> {
        let bytes = match body {
            Some(value) => Bytes::from(serde_json::to_vec(value)?),
            None => Bytes::new(),
        };
        let (status, answer) = self
            .client
            .call(method.clone(), path, content_type, bytes)
            .await?;
        if (200..300).contains(&status) {
            return Ok(serde_json::from_slice(&answer)?);
        }
        let text = String::from_utf8_lossy(&answer).into_owned();
        let message = serde_json::from_slice::<Value>(&answer)
            .ok()
            .and_then(|value| value["message"].as_str().map(String::from))
            .unwrap_or(text);
        Err(Error::Status {
            method: method.to_string(),
            path: path.to_owned(),
            status,
            message,
        })
    }

    /// GET.
    ///
    /// # Errors
    /// [`Error::Status`] for an answer that is not a success, [`Error::Transport`]
    /// for none.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, JSON, None).await
    }

    /// GET, with `None` for 404.
    ///
    /// # Errors
    /// As [`Api::get`], 404 excepted.
    pub async fn find(&self, path: &str) -> Result<Option<Value>> {
        match self.get(path).await {
            Err(Error::Status { status: 404, .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    /// POST to a collection.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.call(Method::POST, path, JSON, Some(object)).await
    }

    /// PUT an object.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn replace(&self, path: &str, object: &Value) -> Result<Value> {
        self.call(Method::PUT, path, JSON, Some(object)).await
    }

    /// PATCH with a JSON merge patch.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn patch(&self, path: &str, patch: &Value) -> Result<Value> {
        self.call(Method::PATCH, path, MERGE_PATCH, Some(patch))
            .await
    }

    /// DELETE an object or a collection; dependents go in the background.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn delete(&self, path: &str) -> Result<Value> {
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"
        });
        self.call(Method::DELETE, path, JSON, Some(&options)).await
    }

    /// DELETE a pod at once, as a kubelet does when its containers have ended.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn delete_now(&self, path: &str, uid: &str) -> Result<Value> {
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
            "preconditions": { "uid": uid }
        });
        self.call(Method::DELETE, path, JSON, Some(&options)).await
    }

    /// The apiserver's metrics now.
    ///
    /// # Errors
    /// [`Error::Transport`] if there is no answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        let (status, text) = self.client.page("/metrics").await?;
        crate::ensure(status == 200, || {
            format!("apiserver /metrics: HTTP {status}")
        })?;
        Ok(Metrics::new(text))
    }
}

/// The objects of a list.
#[must_use]
pub fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

/// `NAMESPACE/NAME` of an object, or its name if it has no namespace.
#[must_use]
pub fn full_name(object: &Value) -> String {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    match metadata["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// `resourceVersion` of an object or list as the number it is in etcd.
#[must_use]
pub fn revision(object: &Value) -> i64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or(-1)
}
