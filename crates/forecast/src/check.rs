//! Whether a cluster is one that a forecast fits, before it may act.

use crate::collect::{Collector, Source};
use crate::cost::costs;
use crate::error::Error;
use crate::guard;
use crate::history::History;
use crate::schema::Column;
use std::time::Duration;

/// Rounds that are looked at.
const ROUNDS: u32 = 3;
const CALL: Duration = Duration::from_secs(3);

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// What is as it should be.
    pub good: Vec<String>,
    /// What keeps it from acting.
    pub misfits: Vec<String>,
}

/// Looks at a cluster for three intervals. `writes` also tries whether the keys that actors share
/// can be written: it writes and deletes one.
///
/// # Errors
/// If the settings cannot be used.
pub async fn check(source: Source, prefix: &str, writes: bool) -> Result<Found, Error> {
    let mut collector = Collector::new(source)?;
    let mut found = Found::default();
    let mut history = History::default();
    let mut last = None;
    for _ in 0..ROUNDS {
        let round = collector.round().await;
        history.add(&round.samples);
        last = Some(round);
    }
    let Some(round) = last else {
        return Ok(found);
    };
    let view = &round.view;
    let voters: Vec<u64> = view
        .members
        .iter()
        .filter(|m| !m.learner)
        .filter_map(|m| m.member_id)
        .collect();
    match (voters.len(), view.members.len()) {
        (n, all) if n == all && n >= 3 => found.good.push(format!("{n} members, all with a vote")),
        (n, all) => found.misfits.push(format!(
            "{n} of {all} members have a vote: there must be three or more, and all must"
        )),
    }
    for member in &view.members {
        if !member.health.is_healthy() {
            found
                .misfits
                .push(format!("{} does not answer", member.endpoint));
        }
    }
    match &view.leader {
        Some(leader) => found
            .good
            .push(format!("{} leads in term {}", leader.endpoint, leader.term)),
        None => found.misfits.push("nobody is known to lead".to_owned()),
    }
    found.misfits.extend(round.missing.iter().cloned());
    let needed = [
        Column::StartS,
        Column::Fsyncs,
        Column::FsyncSeconds,
        Column::CpuSeconds,
        Column::Started,
        Column::Handled,
        Column::SerializableMinUs,
        Column::LinearizableMinUs,
    ];
    for sample in &round.samples {
        let missing: Vec<_> = needed
            .iter()
            .filter(|c| sample.get(**c).is_none())
            .map(|c| c.name())
            .collect();
        match missing.is_empty() {
            true => found
                .good
                .push(format!("{}: all that is needed is measured", sample.name)),
            false => found
                .misfits
                .push(format!("{}: missing {}", sample.name, missing.join(", "))),
        }
    }
    let leader = view.leader.as_ref().map(|leader| leader.member_id);
    for cost in costs(&history, &voters, leader, &[], 1.0) {
        let (id, parts) = (cost.member, (cost.client_us, cost.sync_us, cost.quorum_us));
        match cost.total_us {
            Some(us) => found
                .good
                .push(format!("{id:x}: a commit would cost {:.1} ms", us / 1e3)),
            // Without a write there was no sync to measure.
            None => found.misfits.push(format!(
                "{id:x}: what a commit costs is not known (client, sync, quorum: {parts:?})"
            )),
        }
    }
    let client = collector.client();
    if let Err(error) = client.range(guard::board(prefix), CALL).await {
        found
            .misfits
            .push(format!("the keys below {prefix} cannot be read: {error}"));
    } else if writes {
        let set = guard::set(prefix, "check", "", 0);
        match client.txn(set, CALL).await {
            Ok(_) => {
                let delete = etcd_api::etcdserverpb::DeleteRangeRequest {
                    key: format!("{prefix}check").into(),
                    ..Default::default()
                };
                client.delete_range(delete, CALL).await?;
                found
                    .good
                    .push(format!("the keys below {prefix} can be written"));
            }
            Err(error) => found.misfits.push(format!(
                "the keys below {prefix} cannot be written: {error}"
            )),
        }
    }
    Ok(found)
}
