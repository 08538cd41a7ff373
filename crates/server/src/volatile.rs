//! The volatile writer: one thread that takes the sequencer's volatile batches to the log's
//! file and makes them visible. It never waits for a disk; the committer syncs what it wrote.

use crate::durability::{MAX_BATCH_BYTES, publish, refuse};
use crate::shared::Shared;
use engine::op::VOLATILE;
use engine::sequencer::{Answers, Batch};
use journal::VolatileWriter;
use std::sync::Arc;
use std::time::Duration;

/// Runs until the server stops and nothing volatile is left.
pub(crate) fn run(shared: &Arc<Shared>, writer: &VolatileWriter) {
    loop {
        let stopping = shared.stopping();
        let batch = shared.store.lock().take_batch(VOLATILE, MAX_BATCH_BYTES);
        match batch {
            Some(batch) => write(shared, writer, &batch),
            None if stopping => break,
            None => {
                shared.store.volatile.wait(Duration::from_secs(3600));
            }
        }
    }
}

fn write(shared: &Shared, writer: &VolatileWriter, batch: &Batch) {
    let store = &shared.store;
    let mut answers = Answers::new();
    let result = writer.write(
        &batch.records,
        Duration::from_millis(batch.sync_within_ms.into()),
        || store.lock().revision(),
        || publish(shared, batch.ticket, &mut answers),
    );
    match result {
        Ok((info, published)) => {
            store.deliver(&mut answers);
            store.raise(published.open);
            let (m, records) = (&shared.metrics, batch.records.len() as u64);
            shared.committed(info.lsn, records);
            m.wal_write.observe(Duration::from_micros(info.write_us));
            m.wal_write_bytes.add(info.bytes);
            m.writes.volatile.add(records);
            m.write_bytes.volatile.add(info.bytes);
            published.report(shared, batch.records.len());
        }
        Err(error) => refuse(shared, batch, &error),
    }
}
