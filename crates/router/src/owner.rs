//! Requests to the node's own pods: the pod's queue, and the pod.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use routing::{Budget, Refusal};

use crate::body::{self, Body, Hold};
use crate::failure::{Failure, Kind};
use crate::job::Job;
use crate::pod::{Pod, Slot};
use crate::router::{Router, Service};
use crate::{head, peers, tunnel};

/// What a pod answered.
pub(crate) struct Answered {
    /// Its head is stripped; its body is the pod's.
    pub(crate) response: Response<Body>,
    /// The pod is busy for as long as this is held.
    pub(crate) hold: Hold,
    pub(crate) queued_us: u64,
    /// With the wait in the queue.
    pub(crate) serving_us: u64,
    /// The pod switched to another protocol.
    pub(crate) switched: Option<OnUpgrade>,
}

/// Counts a request that a pod served, when it is over.
struct Served {
    pod: Arc<Pod>,
    came: Instant,
    /// Dropped after the count.
    _slot: Slot,
    counts: bool,
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.counts {
            let took_us = micros(self.came.elapsed());
            self.pod.counts.served.fetch_add(1, Ordering::Relaxed);
            self.pod
                .counts
                .serving_us
                .fetch_add(took_us, Ordering::Relaxed);
        }
    }
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What is left of a budget.
pub(crate) fn left(router: &Router, budget: &Budget, or: Failure) -> Result<Duration, Failure> {
    budget
        .left_us(router.now_us())
        .map(Duration::from_micros)
        .ok_or(or)
}

/// Has one of the node's pods serve a request.
pub(crate) async fn serve(
    router: &Router,
    pod: &Arc<Pod>,
    job: &mut Job,
    budget: &Budget,
) -> Result<Answered, Failure> {
    let came = Instant::now();
    let late = Failure::not_sent(Kind::Timeout);
    let slot = tokio::time::timeout(left(router, budget, late)?, pod.admit())
        .await
        .map_err(|_| late)?
        .map_err(|refusal| match refusal {
            Refusal::Full => Failure::not_sent(Kind::QueueFull),
            Refusal::Closed => Failure::not_sent(Kind::NoPod),
        })?;
    let queued_us = micros(came.elapsed());
    pod.counts.admitted.fetch_add(1, Ordering::Relaxed);
    pod.counts.queued_us.fetch_add(queued_us, Ordering::Relaxed);
    let mut served = Served {
        pod: pod.clone(),
        came,
        _slot: slot,
        counts: false,
    };

    let time = left(router, budget, late)?;
    let (given, request) = job.for_pod(pod.protocol, &pod.address.to_string())?;
    let answer = tokio::time::timeout(time, pod.client.request(request)).await;
    let mut response: Response<Incoming> = match answer {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            tracing::debug!(pod = %pod.name, address = %pod.address, %error, "a pod gave no answer");
            let failure = match error.is_connect() {
                true => Failure::not_sent(Kind::Connect),
                false => Failure::sent(Kind::Broken),
            };
            return Err(job.take_back(given, failure));
        }
        Err(_) => return Err(Failure::sent(Kind::Timeout)),
    };
    let switched = match (response.status(), &job.upgrade) {
        (StatusCode::SWITCHING_PROTOCOLS, Some(_)) => Some(hyper::upgrade::on(&mut response)),
        // A protocol that nobody asked for is no answer.
        (StatusCode::SWITCHING_PROTOCOLS, None) => return Err(Failure::sent(Kind::Broken)),
        _ => None,
    };
    // A tunnel lasts as long as its client likes: that is no serving time.
    served.counts = switched.is_none();
    pod.count_answer(response.status().as_u16());
    head::strip(response.headers_mut());
    Ok(Answered {
        response: response.map(body::incoming),
        hold: Box::new(served),
        queued_us,
        serving_us: micros(came.elapsed()),
        switched,
    })
}

/// A request of another router.
pub(crate) async fn peer_request(
    router: Arc<Router>,
    request: Request<Incoming>,
    under_way: Hold,
) -> Response<Body> {
    if request.uri().path() == peers::HEALTH && !request.headers().contains_key(head::SERVICE) {
        let mut answer = Response::new(body::empty());
        if router.draining.load(Ordering::Relaxed) {
            answer
                .headers_mut()
                .insert(head::LEAVES, HeaderValue::from_static("1"));
        }
        return answer;
    }
    match of_peer(&router, request, under_way).await {
        Ok(answer) => answer,
        Err(failure) => {
            router.count_failure(failure.kind);
            let mut answer = failure.answer();
            answer.headers_mut().insert(head::FAILED, failure.value());
            answer
        }
    }
}

/// The pod that was named; another of the node's own where that is gone.
fn own_pod(service: &Service, name: &str) -> Option<Arc<Pod>> {
    let own = || service.pods.iter().filter(|pod| pod.local);
    let waiting = |pod: &&Arc<Pod>| {
        let queue = pod.queue.lock();
        queue.waiting() + queue.in_flight() as usize
    };
    own()
        .find(|pod| pod.name == name)
        .or_else(|| own().min_by_key(waiting))
        .cloned()
}

async fn of_peer(
    router: &Arc<Router>,
    mut request: Request<Incoming>,
    under_way: Hold,
) -> Result<Response<Body>, Failure> {
    let permit = router.peer_permits.clone().try_acquire_owned();
    let permit = permit.map_err(|_| Failure::not_sent(Kind::Overload))?;
    let malformed = Failure::not_sent(Kind::Malformed);
    let headers = request.headers();
    let name = |name| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .ok_or(malformed)
    };
    let service = router
        .of_name(name(head::SERVICE)?)
        .ok_or(Failure::not_sent(Kind::NoPod))?;
    let pod = own_pod(&service, name(head::POD)?).ok_or(Failure::not_sent(Kind::NoPod))?;
    let left_us = head::number(headers, &head::LEFT_US).ok_or(malformed)?;
    let of_service = service.entry.timeout_ms.saturating_mul(1_000);
    let budget = Budget::new(router.now_us(), left_us.min(of_service));
    let authority = head::authority(request.uri(), headers).map_err(|_| malformed)?;

    let upgrade = match request.method() == Method::CONNECT {
        false => None,
        true => {
            let protocol = request.extensions().get::<Protocol>().ok_or(malformed)?;
            Some(HeaderValue::from_str(protocol.as_str()).map_err(|_| malformed)?)
        }
    };
    let client = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut headers = parts.headers;
    head::strip(&mut headers);
    let method = match upgrade {
        Some(_) => Method::GET,
        None => parts.method,
    };
    let path = parts.uri.path_and_query().cloned().ok_or(malformed)?;
    let patience = router.limits.body_timeout;
    let body = body::incoming(body);
    let mut job = Job::new(method, path, authority, headers, upgrade, body, patience);

    let answered = match serve(router, &pod, &mut job, &budget).await {
        Ok(answered) => answered,
        Err(failure) => {
            if matches!(failure.kind, Kind::Connect | Kind::Broken) {
                router.failed(&pod);
            }
            return Err(failure);
        }
    };
    pod.succeeded(answered.serving_us as f64 / 1e3, router.now_us());
    let mut response = answered.response;
    let headers = response.headers_mut();
    headers.insert(head::QUEUED_US, HeaderValue::from(answered.queued_us));
    headers.insert(head::SERVING_US, HeaderValue::from(answered.serving_us));
    if let Ok(name) = HeaderValue::from_str(&pod.name) {
        headers.insert(head::POD, name);
    }
    let hold: Hold = Box::new((answered.hold, permit, under_way));
    if let (Some(client), Some(of_pod)) = (client, answered.switched) {
        headers.insert(head::SWITCHED, HeaderValue::from_static("1"));
        *response.status_mut() = StatusCode::OK;
        tunnel::start(router.clone(), client, of_pod, hold);
        return Ok(response.map(|_| body::empty()));
    }
    Ok(response.map(|body| body::answer(&router.answers, body, hold)))
}
