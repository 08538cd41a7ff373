//! The Deployment that is asked for, over and over, with another name each time.

use std::path::Path;

use super::Result;
use crate::Error;

/// What is replaced by a number.
const INDEX: &str = "${INDEX}";

/// Figure 5.4 of the thesis that the load patterns come from, its label key made a valid one.
/// All of its Deployments select `app: nginx`, so that the Deployment controller looks at all
/// of their ReplicaSets each time: that is part of the load.
const THESIS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: nginx-${INDEX}
  labels:
    app: nginx
spec:
  replicas: 1
  selector:
    matchLabels:
      app: nginx
  template:
    metadata:
      labels:
        app: nginx
        particular-instance: nginx-${INDEX}
    spec:
      containers:
      - name: nginx
        image: nginx:1.14.2
"#;

/// A Deployment with a place for a number.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    /// As JSON.
    json: String,
    name: String,
    /// Pods that each becomes.
    pub(crate) replicas: u32,
}

impl Manifest {
    pub(crate) fn thesis() -> Result<Manifest> {
        Manifest::parse(THESIS)
    }

    pub(crate) fn read(path: &Path) -> Result<Manifest> {
        let text = std::fs::read_to_string(path).map_err(Error::file(path))?;
        Manifest::parse(&text)
    }

    fn parse(text: &str) -> Result<Manifest> {
        let bad = |why: &str| Error::Argument(format!("the manifest {why}"));
        let mut object: serde_json::Value =
            serde_yaml_ng::from_str(text).map_err(|e| bad(&format!("is no YAML object: {e}")))?;
        if object["kind"] != "Deployment" || object["apiVersion"] != "apps/v1" {
            return Err(bad("is not one Deployment of apps/v1"));
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        if !name.contains(INDEX) {
            return Err(bad(
                "needs ${INDEX} in metadata.name, so that each has a name of its own",
            ));
        }
        let name = name.to_owned();
        let replicas = match &object["spec"]["replicas"] {
            serde_json::Value::Null => 1,
            value => value
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| (1..=1000).contains(n))
                .ok_or_else(|| bad("has replicas that are not between 1 and 1000"))?,
        };
        if let Some(metadata) = object["metadata"].as_object_mut() {
            // The benchmark has a namespace of its own.
            metadata.remove("namespace");
        }
        Ok(Manifest {
            json: object.to_string(),
            name,
            replicas,
        })
    }

    pub(crate) fn name(&self, index: usize) -> String {
        self.name.replace(INDEX, &index.to_string())
    }

    pub(crate) fn json(&self, index: usize) -> bytes::Bytes {
        self.json.replace(INDEX, &index.to_string()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_name() {
        let manifest = Manifest::thesis().unwrap();
        assert_eq!(manifest.replicas, 1);
        assert_eq!(manifest.name(7), "nginx-7");
        let json: serde_json::Value = serde_json::from_slice(&manifest.json(7)).unwrap();
        assert_eq!(json["metadata"]["name"], "nginx-7");
        let labels = &json["spec"]["template"]["metadata"]["labels"];
        assert_eq!(labels["particular-instance"], "nginx-7");
    }

    #[test]
    fn other_manifests_are_checked() {
        for bad in [
            "a: b",
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: fixed}}",
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: 'x-${INDEX}'}, spec: {replicas: 0}}",
            "[",
        ] {
            assert!(Manifest::parse(bad).is_err(), "{bad}");
        }
    }
}
