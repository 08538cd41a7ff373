//! What became of each Deployment that was asked for, and the count of it all.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::proto::{Deployment, Pod, ReplicaSet};

/// Problems kept; the first ones tell the story.
const MAX_PROBLEMS: usize = 10;

/// A moment in a Deployment's life, seen by a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// The apiserver answered the create.
    Accepted,
    /// Its ReplicaSet was seen.
    ReplicaSet,
    /// Its pods were seen.
    Pod,
    /// Its pods have nodes.
    Bound,
    /// Its pods run and are ready.
    Ready,
    /// Its status says that the rollout is complete.
    Complete,
    /// The apiserver answered the delete.
    DeleteAccepted,
    /// The Deployment, its ReplicaSet and its pods are gone.
    Gone,
}

impl Stage {
    pub(crate) const ALL: [Stage; 8] = [
        Stage::Accepted,
        Stage::ReplicaSet,
        Stage::Pod,
        Stage::Bound,
        Stage::Ready,
        Stage::Complete,
        Stage::DeleteAccepted,
        Stage::Gone,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Stage::Accepted => "accepted",
            Stage::ReplicaSet => "replica_set",
            Stage::Pod => "pod",
            Stage::Bound => "bound",
            Stage::Ready => "ready",
            Stage::Complete => "complete",
            Stage::DeleteAccepted => "delete_accepted",
            Stage::Gone => "gone",
        }
    }

    fn of_delete(self) -> bool {
        self >= Stage::DeleteAccepted
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    sets: u32,
    pods: u32,
    bound: u32,
    ready: u32,
}

#[derive(Debug)]
struct App {
    intended: Instant,
    delete_intended: Option<Instant>,
    /// Whether its creation counts in the figures; a deletion always does.
    measured: bool,
    at: [Option<Instant>; Stage::ALL.len()],
    ever: Counts,
    deployment_gone: bool,
    sets_left: u32,
    pods_left: u32,
}

#[derive(Debug)]
struct PodState {
    bound: bool,
    ready: bool,
}

/// All Deployments of a run.
#[derive(Debug)]
pub(crate) struct Tracker {
    replicas: u32,
    apps: Vec<App>,
    by_name: HashMap<String, usize>,
    pods: HashMap<String, PodState>,
    problems: Vec<String>,
    /// Deployments that reached each stage.
    reached: [usize; Stage::ALL.len()],
}

impl Tracker {
    /// None yet; each is to have `replicas` pods.
    pub(crate) fn new(replicas: u32) -> Tracker {
        Tracker {
            replicas,
            apps: Vec::new(),
            by_name: HashMap::new(),
            pods: HashMap::new(),
            problems: Vec::new(),
            reached: [0; Stage::ALL.len()],
        }
    }

    /// A Deployment was asked for, or should have been, at `intended`.
    pub(crate) fn ask(&mut self, name: String, intended: Instant, measured: bool) -> usize {
        let app = self.apps.len();
        self.apps.push(App {
            intended,
            delete_intended: None,
            measured,
            at: [None; Stage::ALL.len()],
            ever: Counts::default(),
            deployment_gone: false,
            sets_left: 0,
            pods_left: 0,
        });
        self.by_name.insert(name, app);
        app
    }

    /// Its deletion was asked for.
    pub(crate) fn ask_delete(&mut self, app: usize, intended: Instant) {
        if let Some(app) = self.apps.get_mut(app) {
            app.delete_intended = Some(intended);
        }
    }

    pub(crate) fn reach(&mut self, app: usize, stage: Stage, now: Instant) {
        if let Some(at) = self
            .apps
            .get_mut(app)
            .and_then(|app| app.at.get_mut(stage as usize))
            && at.is_none()
        {
            *at = Some(now);
            if let Some(count) = self.reached.get_mut(stage as usize) {
                *count += 1;
            }
        }
    }

    /// Something that must not happen.
    pub(crate) fn problem(&mut self, text: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(text);
        }
    }

    pub(crate) fn reached(&self, stage: Stage) -> usize {
        self.reached
            .get(stage as usize)
            .copied()
            .unwrap_or_default()
    }

    pub(crate) fn asked(&self) -> usize {
        self.apps.len()
    }

    pub(crate) fn deployment(&mut self, kind: &str, object: &Deployment, now: Instant) {
        let Some(metadata) = &object.metadata else {
            return;
        };
        let Some(&app) = self.by_name.get(&metadata.name) else {
            return;
        };
        if kind == "DELETED" {
            if let Some(app) = self.apps.get_mut(app) {
                app.deployment_gone = true;
            }
            self.check_gone(app, now);
            return;
        }
        let Some(status) = &object.status else { return };
        let wanted = object.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        // As `kubectl rollout status` has it.
        if status.observed_generation >= metadata.generation
            && status.updated_replicas == wanted
            && status.replicas == wanted
            && status.available_replicas == wanted
        {
            self.reach(app, Stage::Complete, now);
        }
    }

    pub(crate) fn replica_set(&mut self, kind: &str, object: &ReplicaSet, now: Instant) {
        let Some(metadata) = &object.metadata else {
            return;
        };
        let Some(owner) = metadata.owner("Deployment") else {
            return;
        };
        let Some(&index) = self.by_name.get(owner) else {
            return;
        };
        let Some(app) = self.apps.get_mut(index) else {
            return;
        };
        match kind {
            "ADDED" => {
                app.ever.sets += 1;
                app.sets_left += 1;
                if app.ever.sets > 1 {
                    let text = format!("{owner} has a second ReplicaSet, {}", metadata.name);
                    self.problem(text);
                }
                self.reach(index, Stage::ReplicaSet, now);
            }
            "DELETED" => {
                app.sets_left = app.sets_left.saturating_sub(1);
                self.check_gone(index, now);
            }
            _ => {}
        }
    }

    pub(crate) fn pod(&mut self, kind: &str, object: &Pod, now: Instant) {
        let Some(metadata) = &object.metadata else {
            return;
        };
        let Some(set) = metadata.owner("ReplicaSet") else {
            return;
        };
        // The pod may be seen before its ReplicaSet, whose name is the Deployment's, a dash
        // and a hash.
        let Some((owner, _)) = set.rsplit_once('-') else {
            return;
        };
        let Some(&index) = self.by_name.get(owner) else {
            return;
        };
        let Some(app) = self.apps.get_mut(index) else {
            return;
        };
        if kind == "DELETED" {
            if self.pods.remove(&metadata.name).is_some() {
                app.pods_left = app.pods_left.saturating_sub(1);
                if app.delete_intended.is_none() {
                    let text = format!("pod {} is gone, and nobody asked for that", metadata.name);
                    self.problem(text);
                }
            }
            self.check_gone(index, now);
            return;
        }
        if kind == "ADDED" {
            app.ever.pods += 1;
            app.pods_left += 1;
            if app.ever.pods > self.replicas {
                let text = format!(
                    "{owner} has one pod more than its {}: {}",
                    self.replicas, metadata.name
                );
                self.problem(text);
                return;
            }
            let state = PodState {
                bound: false,
                ready: false,
            };
            self.pods.insert(metadata.name.clone(), state);
        }
        let Some(pod) = self.pods.get_mut(&metadata.name) else {
            return;
        };
        if !pod.bound
            && object
                .spec
                .as_ref()
                .is_some_and(|s| !s.node_name.is_empty())
        {
            pod.bound = true;
            app.ever.bound += 1;
        }
        if !pod.ready && object.status.as_ref().is_some_and(is_ready) {
            pod.ready = true;
            app.ever.ready += 1;
        }
        let ever = app.ever;
        for (stage, count) in [
            (Stage::Pod, ever.pods),
            (Stage::Bound, ever.bound),
            (Stage::Ready, ever.ready),
        ] {
            if count >= self.replicas {
                self.reach(index, stage, now);
            }
        }
    }

    fn check_gone(&mut self, index: usize, now: Instant) {
        let Some(app) = self.apps.get(index) else {
            return;
        };
        if app.deployment_gone && app.sets_left == 0 && app.pods_left == 0 {
            self.reach(index, Stage::Gone, now);
        }
    }

    /// The oldest Deployment that the apiserver has and nobody asked to delete.
    pub(crate) fn oldest(&self, from: usize) -> Option<usize> {
        (from..self.apps.len()).find(|&index| {
            self.apps.get(index).is_some_and(|app| {
                app.delete_intended.is_none() && app.at[Stage::Accepted as usize].is_some()
            })
        })
    }

    /// Deployments that are not yet what they should be: complete, or gone if that was asked.
    pub(crate) fn unfinished(&self) -> usize {
        self.apps.iter().filter(|app| !app.finished()).count()
    }

    /// How many Deployments there should be now, when nothing is unfinished.
    pub(crate) fn should_exist(&self) -> usize {
        self.apps
            .iter()
            .filter(|app| app.delete_intended.is_none())
            .count()
    }

    /// Fails if something happened that must not: the run has failed, however it goes on.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(self.problems.join("; "))
        }
    }

    /// Why the run failed, if it did.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        let mut why = self.problems.clone();
        let stuck = self.unfinished();
        if stuck > 0 {
            let mut names: Vec<_> = self
                .by_name
                .iter()
                .filter(|(_, index)| self.apps.get(**index).is_some_and(|app| !app.finished()))
                .map(|(name, index)| format!("{name} ({})", self.last_stage(*index)))
                .take(MAX_PROBLEMS)
                .collect();
            names.sort();
            why.push(format!(
                "{stuck} of {} Deployments are stuck, among them {}",
                self.apps.len(),
                names.join(", ")
            ));
        }
        if why.is_empty() {
            Ok(())
        } else {
            Err(why.join("; "))
        }
    }

    fn last_stage(&self, index: usize) -> &'static str {
        let last = self.apps.get(index).and_then(|app| {
            Stage::ALL
                .into_iter()
                .rev()
                .find(|stage| app.at[*stage as usize].is_some())
        });
        last.map_or("no answer", Stage::name)
    }

    /// Latencies to a stage of what is measured, in the order asked, from the intended time.
    pub(crate) fn latencies(&self, stage: Stage) -> Vec<(Instant, Duration)> {
        self.apps
            .iter()
            .filter_map(|app| {
                let (from, counts) = if stage.of_delete() {
                    (app.delete_intended?, true)
                } else {
                    (app.intended, app.measured)
                };
                let at = app.at[stage as usize]?;
                counts.then(|| (from, at.saturating_duration_since(from)))
            })
            .collect()
    }

    /// When each measured Deployment was to be asked for, and when its pods were bound.
    pub(crate) fn creations(&self) -> impl Iterator<Item = (Instant, Option<Instant>)> {
        self.apps
            .iter()
            .filter(|app| app.measured)
            .map(|app| (app.intended, app.at[Stage::Bound as usize]))
    }
}

impl App {
    fn finished(&self) -> bool {
        let last = if self.delete_intended.is_some() {
            Stage::Gone
        } else {
            Stage::Complete
        };
        self.at[last as usize].is_some()
    }
}

fn is_ready(status: &super::proto::PodStatus) -> bool {
    status.phase == "Running"
        && status
            .conditions
            .iter()
            .any(|c| c.kind == "Ready" && c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::super::proto::*;
    use super::*;

    fn metadata(name: &str, owner: Option<(&str, &str)>) -> Option<Metadata> {
        let owners = owner.map(|(kind, name)| OwnerReference {
            kind: kind.into(),
            name: name.into(),
            controller: true,
        });
        Some(Metadata {
            name: name.into(),
            generation: 1,
            owners: owners.into_iter().collect(),
        })
    }

    fn set(name: &str) -> ReplicaSet {
        let owner = name.rsplit_once('-').unwrap().0;
        ReplicaSet {
            metadata: metadata(name, Some(("Deployment", owner))),
        }
    }

    fn pod(name: &str, node: &str, ready: bool) -> Pod {
        let owner = name.rsplit_once('-').unwrap().0;
        Pod {
            metadata: metadata(name, Some(("ReplicaSet", owner))),
            spec: Some(PodSpec {
                node_name: node.into(),
            }),
            status: Some(PodStatus {
                phase: if ready { "Running" } else { "Pending" }.into(),
                conditions: vec![Condition {
                    kind: "Ready".into(),
                    status: if ready { "True" } else { "False" }.into(),
                }],
            }),
        }
    }

    fn deployment(name: &str, available: i32) -> Deployment {
        Deployment {
            metadata: metadata(name, None),
            spec: Some(DeploymentSpec { replicas: Some(1) }),
            status: Some(DeploymentStatus {
                observed_generation: 1,
                replicas: 1,
                updated_replicas: 1,
                available_replicas: available,
            }),
        }
    }

    fn deployed(tracker: &mut Tracker, now: Instant) -> usize {
        let app = tracker.ask("n-1".into(), now, true);
        tracker.reach(app, Stage::Accepted, now);
        // The pod's stream may be ahead of the ReplicaSet's.
        tracker.pod("ADDED", &pod("n-1-h-p", "", false), now);
        tracker.replica_set("ADDED", &set("n-1-h"), now);
        tracker.deployment("MODIFIED", &deployment("n-1", 0), now);
        let later = now + Duration::from_millis(5);
        tracker.pod("MODIFIED", &pod("n-1-h-p", "node", false), later);
        tracker.pod("MODIFIED", &pod("n-1-h-p", "node", true), later);
        assert_eq!(tracker.unfinished(), 1);
        tracker.deployment("MODIFIED", &deployment("n-1", 1), later);
        app
    }

    #[test]
    fn a_deployment_is_followed_to_its_end() {
        let (mut tracker, now) = (Tracker::new(1), Instant::now());
        let app = deployed(&mut tracker, now);
        assert_eq!((tracker.unfinished(), tracker.verdict()), (0, Ok(())));
        let bound = tracker.latencies(Stage::Bound);
        assert_eq!(bound, [(now, Duration::from_millis(5))]);

        assert_eq!(tracker.oldest(0), Some(app));
        tracker.ask_delete(app, now);
        assert_eq!((tracker.oldest(0), tracker.unfinished()), (None, 1));
        tracker.deployment("DELETED", &deployment("n-1", 1), now);
        tracker.replica_set("DELETED", &set("n-1-h"), now);
        assert_eq!(tracker.unfinished(), 1);
        tracker.pod("DELETED", &pod("n-1-h-p", "node", true), now);
        assert_eq!((tracker.unfinished(), tracker.verdict()), (0, Ok(())));
    }

    #[test]
    fn a_pod_too_many_fails_the_run() {
        let (mut tracker, now) = (Tracker::new(1), Instant::now());
        deployed(&mut tracker, now);
        tracker.pod("ADDED", &pod("n-1-h-q", "", false), now);
        assert!(tracker.verdict().unwrap_err().contains("n-1-h-q"));
    }

    #[test]
    fn a_pod_that_vanishes_fails_the_run() {
        let (mut tracker, now) = (Tracker::new(1), Instant::now());
        deployed(&mut tracker, now);
        tracker.pod("DELETED", &pod("n-1-h-p", "node", true), now);
        assert!(tracker.verdict().unwrap_err().contains("nobody asked"));
    }

    #[test]
    fn a_stuck_deployment_fails_the_run() {
        let mut tracker = Tracker::new(1);
        tracker.ask("n-1".into(), Instant::now(), true);
        assert!(tracker.verdict().unwrap_err().contains("n-1 (no answer)"));
    }
}
