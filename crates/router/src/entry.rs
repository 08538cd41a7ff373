//! Requests of clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use routing::{Attempt, Budget, grpc_timeout_us};

use crate::body::{self, Body, Hold};
use crate::failure::{self, Failure, Kind};
use crate::job::Job;
use crate::owner::{self, micros};
use crate::pod::{Pod, Sent};
use crate::router::{Router, Service};
use crate::{head, tunnel};

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct From {
    pub(crate) address: SocketAddr,
    pub(crate) tls: bool,
}

/// What came of an attempt.
struct Outcome {
    response: Response<Body>,
    hold: Hold,
    pod: Arc<Pod>,
    queued_us: u64,
    switched: Option<OnUpgrade>,
}

/// Serves a client's request.
pub(crate) async fn request(
    router: Arc<Router>,
    request: Request<Incoming>,
    from: From,
    under_way: Hold,
) -> Response<Body> {
    let began = Instant::now();
    let logged = router.access_log.then(|| {
        let host = request
            .headers()
            .get(http::header::HOST)
            .map(|h| h.as_bytes().to_vec());
        let host = host.or_else(|| request.uri().authority().map(|a| a.as_str().into()));
        (
            request.method().clone(),
            host,
            request.uri().path().to_owned(),
        )
    });
    let mut served_by = None;
    let response = match serve(&router, request, from, under_way, &mut served_by).await {
        Ok(response) => response,
        Err(refused) => refused,
    };
    if let Some((method, host, path)) = logged {
        let (pod, node, queued_us) = match &served_by {
            Some((pod, queued_us)) => (pod.name.as_str(), pod.node_name.as_str(), *queued_us),
            None => ("", "", 0),
        };
        tracing::info!(
            %method, host = %String::from_utf8_lossy(&host.unwrap_or_default()), path,
            status = response.status().as_u16(), client = %from.address, pod, node, queued_us,
            answered_us = micros(began.elapsed()), "request"
        );
    }
    response
}

type ServedBy = Option<(Arc<Pod>, u64)>;

async fn serve(
    router: &Arc<Router>,
    mut request: Request<Incoming>,
    from: From,
    under_way: Hold,
    served_by: &mut ServedBy,
) -> Result<Response<Body>, Response<Body>> {
    let refuse = |kind: Kind, text: Option<&str>| {
        router.count_failure(kind);
        match text {
            Some(text) => failure::answer(kind, text),
            None => Failure::not_sent(kind).answer(),
        }
    };
    let malformed = |why: head::Malformed| refuse(Kind::Malformed, Some(why.text()));
    let permit = router.permits.clone().try_acquire_owned();
    let permit = permit.map_err(|_| refuse(Kind::Overload, None))?;
    let (method, version) = (request.method().clone(), request.version());
    let upgrade = head::upgrade(&method, version, request.headers()).map_err(malformed)?;
    if upgrade.is_some() && method != Method::GET {
        return Err(malformed(head::Malformed::Upgrade));
    }
    let authority = head::authority(request.uri(), request.headers()).map_err(malformed)?;
    let service = router
        .of_host(&authority.1)
        .ok_or_else(|| refuse(Kind::NoService, None))?;
    let path = match request.uri().path_and_query() {
        Some(path) => path.clone(),
        None => http::uri::PathAndQuery::from_static("/"),
    };
    Router::count_entered(&service);

    let now_us = router.now_us();
    let mut budget = Budget::new(now_us, service.entry.timeout_ms.saturating_mul(1_000));
    let grpc = request
        .headers()
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok());
    if let Some(us) = grpc.and_then(grpc_timeout_us) {
        budget = budget.at_most(now_us, us);
    }
    let client = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut headers = parts.headers;
    head::strip(&mut headers);
    head::forwarded(&mut headers, from.address.ip(), from.tls);
    let body = body::incoming(body);
    let patience = router.limits.body_timeout;
    let mut job = Job::new(
        method,
        path,
        authority,
        headers,
        upgrade.clone(),
        body,
        patience,
    );

    let outcome = match attempts(router, service, &mut job, &budget).await {
        Ok(outcome) => outcome,
        Err(failure) => return Err(refuse(failure.kind, None)),
    };
    *served_by = Some((outcome.pod, outcome.queued_us));
    let hold: Hold = Box::new((outcome.hold, permit, under_way));
    let mut response = outcome.response;
    if let (Some(client), Some(of_pod), Some(protocol)) = (client, outcome.switched, upgrade) {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
        tunnel::start(router.clone(), client, of_pod, hold);
        return Ok(response.map(|_| body::empty()));
    }
    Ok(response.map(|body| body::answer(&router.answers, body, hold)))
}

/// A pod that its own router does not know is asked for again after so long: tables change at all
/// nodes, but not at once.
const UNKNOWN_PAUSE: Duration = Duration::from_millis(200);

async fn attempts(
    router: &Arc<Router>,
    mut service: Arc<Service>,
    job: &mut Job,
    budget: &Budget,
) -> Result<Outcome, Failure> {
    let late = Failure::not_sent(Kind::Timeout);
    let mut tried: Vec<Arc<Pod>> = Vec::new();
    let mut retries = 0;
    loop {
        let Some(pod) = router.pick(&service, &tried) else {
            let time = owner::left(router, budget, late)?;
            let waits = router.wait_for_pod(&service);
            tokio::time::timeout(time, waits)
                .await
                .map_err(|_| late)??;
            tried.clear();
            let name = &service.entry.name;
            service = router
                .of_name(name)
                .ok_or(Failure::not_sent(Kind::NoService))?;
            continue;
        };
        let failure = match attempt(router, &service, &pod, job, budget).await {
            Ok(outcome) => return Ok(outcome),
            Err(failure) => failure,
        };
        if failure.kind == Kind::Timeout {
            return Err(failure);
        }
        tried.push(pod);
        let name = &service.entry.name;
        service = router
            .of_name(name)
            .ok_or(Failure::not_sent(Kind::NoService))?;
        let others = router.has_pod(&service, &tried);
        if !others && matches!(failure.kind, Kind::NoPod | Kind::NoPeer) && job.is_whole() {
            // The other router knows better or not yet, or is not there: it is as if there had
            // never been a pod.
            tried.clear();
            tokio::time::sleep(owner::left(router, budget, late)?.min(UNKNOWN_PAUSE)).await;
            continue;
        }
        // Without another pod the failure is the answer.
        if !others {
            return Err(failure);
        }
        let attempt = Attempt {
            progress: failure.progress,
            idempotent: job.method.is_idempotent(),
            whole: job.is_whole(),
        };
        if !Router::may_retry(&service, attempt, retries) {
            return Err(failure);
        }
        retries += 1;
    }
}

async fn attempt(
    router: &Arc<Router>,
    service: &Service,
    pod: &Arc<Pod>,
    job: &mut Job,
    budget: &Budget,
) -> Result<Outcome, Failure> {
    let began = Instant::now();
    let sent = Sent::to(pod);
    let made = match pod.local {
        true => owner::serve(router, pod, job, budget)
            .await
            .map(|answered| {
                let outcome = Outcome {
                    response: answered.response,
                    hold: answered.hold,
                    pod: pod.clone(),
                    queued_us: answered.queued_us,
                    switched: answered.switched,
                };
                (outcome, answered.serving_us)
            }),
        false => hop(router, service, pod, job, budget).await,
    };
    match made {
        Ok((mut outcome, serving_us)) => {
            let whole_ms = began.elapsed().as_secs_f64() * 1e3;
            router.succeeded(service, pod, serving_us as f64 / 1e3, whole_ms);
            outcome.hold = Box::new((outcome.hold, sent));
            Ok(outcome)
        }
        Err(failure) => {
            if matches!(failure.kind, Kind::Connect | Kind::Broken) {
                router.failed(pod);
            }
            Err(failure)
        }
    }
}

/// Sends it to the router of the pod's node.
async fn hop(
    router: &Arc<Router>,
    service: &Service,
    pod: &Arc<Pod>,
    job: &mut Job,
    budget: &Budget,
) -> Result<(Outcome, u64), Failure> {
    let no_peer = Failure::not_sent(Kind::NoPeer);
    let mut sender = router
        .link_to(pod)
        .and_then(|link| link.sender())
        .ok_or(no_peer)?;
    let late = Failure::not_sent(Kind::Timeout);
    let time = owner::left(router, budget, late)?;
    let (given, request) = job.for_peer(&service.entry.name, &pod.name, micros(time))?;
    let answer = tokio::time::timeout(time, sender.try_send_request(request)).await;
    let mut response: Response<Incoming> = match answer {
        Ok(Ok(response)) => response,
        Ok(Err(mut error)) => {
            let unsent = error.take_message().is_some() || was_refused(error.error());
            let failure = match unsent {
                true => no_peer,
                false => Failure::sent(Kind::Broken),
            };
            return Err(job.take_back(given, failure));
        }
        Err(_) => return Err(Failure::sent(Kind::Timeout)),
    };
    if let Some(value) = response.headers().get(head::FAILED) {
        let failure = Failure::read(value);
        return Err(job.take_back(given, failure));
    }
    let queued_us = head::number(response.headers(), &head::QUEUED_US).unwrap_or(0);
    let serving_us = head::number(response.headers(), &head::SERVING_US).unwrap_or(0);
    let switched = response.headers().contains_key(head::SWITCHED);
    let switched = switched.then(|| hyper::upgrade::on(&mut response));
    pod.count_answer(match switched {
        Some(_) => StatusCode::SWITCHING_PROTOCOLS.as_u16(),
        None => response.status().as_u16(),
    });
    head::strip(response.headers_mut());
    let outcome = Outcome {
        response: response.map(body::incoming),
        hold: Box::new(()),
        pod: pod.clone(),
        queued_us,
        switched,
    };
    Ok((outcome, serving_us))
}

/// Whether the other side says that it has not looked at a request.
fn was_refused(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let h2 = source.and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
}
