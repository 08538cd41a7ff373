//! Routers that follow a real control plane, with the rights of their manifests.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::fleet;
use e2e::kube::api::Api;
use e2e::kube::control_plane::{ControlPlane, Plan, READY_TIMEOUT};
use e2e::kube::proc::{Process, conclude, free_port, run};
use e2e::kube::store::{Kind, Store};
use e2e::kube::{Result, binaries, ensure, eventually};
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::quick;
use crate::rig::{PATIENCE, authority, certificate, get};

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const HOST: &str = "cart.default";

/// An address of this machine that is not loopback, which no slice may have. What is sent there
/// goes over loopback all the same; this sends nothing.
fn own_address() -> Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("203.0.113.1:9")?;
    Ok(socket.local_addr()?.ip())
}

fn node(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        "status": { "addresses": [{ "type": "InternalIP", "address": address }] }
    })
}

/// Ready pods of the private Service, one slice each: a slice has one port.
fn slice(pod: &Backend, node: &str, at: IpAddr, ready: bool) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": pod.name, "labels": { "kubernetes.io/service-name": "cart-pods" } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": pod.address.port(), "protocol": "TCP" }],
        "endpoints": [{
            "addresses": [at.to_string()], "nodeName": node, "conditions": { "ready": ready },
            "targetRef": { "kind": "Pod", "name": pod.name, "namespace": "default" }
        }]
    })
}

fn service(name: &str, annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "annotations": annotations },
        "spec": { "ports": [{ "name": "http", "port": 80 }] }
    })
}

/// A kubeconfig with what the packaged manifests allow.
async fn account(dir: &Path, plane: &ControlPlane, api: &Api) -> Result<std::path::PathBuf> {
    let admin = plane.write_kubeconfig("admin")?;
    let packaged = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/fleet/router");
    run(Command::new(binaries("kube-1.37")?.join("kubectl"))
        .arg(format!("--kubeconfig={}", admin.display()))
        .args([
            "apply",
            "--server-side",
            "--validate=strict",
            "-k",
            packaged,
        ]))?;
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": { "expirationSeconds": 7200 }
    });
    let path = "/api/v1/namespaces/orlop-fleet/serviceaccounts/orlop-router/token";
    let token = api.create(path, &request).await?["status"]["token"].take();
    let mut config: Value = serde_json::from_slice(&std::fs::read(&admin)?)?;
    config["users"][0]["user"]["token"] = token;
    let account = dir.join("router.kubeconfig");
    std::fs::write(&account, serde_json::to_vec(&config)?)?;
    Ok(account)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routers_follow_a_cluster_and_go_on_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let result = follow(dir.path()).await;
    conclude(dir, result);
}

async fn follow(dir: &Path) -> Result<()> {
    let store = Store::start(Kind::under_test()?, "store", dir, None, &[]).await?;
    let plan = Plan {
        binaries: binaries("kube-1.37")?,
        checks_cache: false,
        client_qps: None,
        port: 0,
        ready_timeout: READY_TIMEOUT,
    };
    let mut plane = ControlPlane::start_as(plan, dir, &store.endpoints(), &[]).await?;
    let api = plane.api();
    let account = account(dir, &plane, &api).await?;
    let (port, peer_port) = (free_port()?, free_port()?);
    let ca = authority();
    std::fs::write(dir.join("ca.crt"), ca.pem())?;
    let mut routers = Vec::new();
    for (name, address) in [("a", "127.0.0.1"), ("b", "127.0.0.2")] {
        api.create("/api/v1/nodes", &node(name, address)).await?;
        certificate(&ca, dir, name, name, None);
        let file = |file: &str| dir.join(file).display().to_string();
        let mut command = Command::new(fleet::program()?);
        command
            .args(["router", &format!("--node={name}")])
            .arg(format!("--kubeconfig={}", account.display()))
            .arg(format!("--listen={address}:{port}"))
            .arg(format!("--peer-listen={address}:{peer_port}"))
            .arg(format!("--peer-port={peer_port}"))
            .arg(format!("--peer-cert-file={}", file(&format!("{name}.crt"))))
            .arg(format!("--peer-key-file={}", file(&format!("{name}.key"))))
            .arg(format!("--peer-trusted-ca-file={}", file("ca.crt")))
            .arg(format!("--metrics-addr=127.0.0.1:{}", free_port()?));
        routers.push(Process::start(
            &format!("router-{name}"),
            dir,
            &mut command,
        )?);
    }
    let at = own_address()?;
    let (p, q) = (
        Backend::start_at("p", at, quick()).await,
        Backend::start_at("q", at, quick()).await,
    );

    // Not routed, wrong, and right.
    api.create(SERVICES, &service("plain", &json!({}))).await?;
    let wrong = json!({ "orlop.io/route-to": "cart-pods", "orlop.io/concurrency": "none" });
    api.create(SERVICES, &service("wrong", &wrong)).await?;
    api.create(SERVICES, &service("cart-pods", &json!({})))
        .await?;
    let right = json!({
        "orlop.io/route-to": "cart-pods", "orlop.io/policy": "round-robin",
        "orlop.io/timeout-ms": "50000", "orlop.io/hosts": "cart.example"
    });
    api.create(SERVICES, &service("cart", &right)).await?;
    eventually("the Service is routed", PATIENCE, || async {
        // Without a pod it waits: the Service is there when it is no stranger any more.
        let waits = tokio::time::timeout(Duration::from_millis(700), get(port, "/", HOST)).await;
        Ok(waits.is_err().then_some(()))
    })
    .await?;
    // One that waits is served when there is a pod that is ready, at the other node.
    let waiting = tokio::spawn(get(port, "/", "cart.example"));
    api.create(SLICES, &slice(&p, "b", at, false)).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure(!waiting.is_finished(), || {
        "a pod that is not ready was used".to_owned()
    })?;
    api.replace(&format!("{SLICES}/p"), &slice(&p, "b", at, true))
        .await?;
    let answer = waiting.await.unwrap()?;
    ensure((answer.status, &*answer.pod) == (200, "p"), || {
        format!("{answer:?}")
    })?;
    for host in ["plain.default", "wrong.default"] {
        let answer = get(port, "/", host).await?;
        ensure(answer.status == 404, || format!("{host}: {answer:?}"))?;
    }

    // Another pod comes, and the first goes.
    api.create(SLICES, &slice(&q, "a", at, true)).await?;
    let reaches = async |pod: &str| {
        eventually("the pod is used", PATIENCE, || async {
            let answer = get(port, "/", HOST).await?;
            ensure(answer.status == 200, || format!("{answer:?}"))?;
            Ok((answer.pod == pod).then_some(()))
        })
        .await
    };
    reaches("q").await?;
    api.delete(&format!("{SLICES}/p")).await?;
    let all = std::cell::Cell::new(p.all());
    eventually("the pod is not used any more", PATIENCE, || async {
        for _ in 0..6 {
            get(port, "/", HOST).await?;
        }
        Ok((all.replace(p.all()) == p.all()).then_some(()))
    })
    .await?;

    // Without the API all goes on, and what changed meanwhile is seen afterwards.
    plane.stop_apiserver(0);
    for _ in 0..20 {
        let answer = get(port, "/", HOST).await?;
        ensure((answer.status, &*answer.pod) == (200, "q"), || {
            format!("{answer:?}")
        })?;
    }
    plane.restart_apiserver(0, &[]).await?;
    eventually("the API takes a pod", PATIENCE, || async {
        Ok(api.create(SLICES, &slice(&p, "b", at, true)).await.ok())
    })
    .await?;
    reaches("p").await?;
    for router in &mut routers {
        router.check_running()?;
    }
    Ok(())
}
