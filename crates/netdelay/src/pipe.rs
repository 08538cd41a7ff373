//! One direction of a connection: bytes go in, and come out later.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};

use crate::delay::Delay;
use crate::timer::Timer;

/// The most that is under way in one direction of one connection, in bytes; each piece counts
/// 64 more than its own. Who sends more is not read from until some of it has arrived.
pub const LINK_BYTES_MAX: u32 = 16 << 20;
/// The most that is read at once. A direction holds one such piece beyond [`LINK_BYTES_MAX`].
pub const READ_BYTES_MAX: u32 = 64 << 10;
/// What a piece costs besides its bytes.
const PIECE_BYTES: u32 = 64;

/// What is under way.
#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    /// The sender has said all.
    End,
    /// The sender's side broke.
    Broken(io::Error),
}

/// One direction's way: how long, and how much is on it at most.
#[derive(Debug, Clone)]
pub(crate) struct Pipe {
    pub(crate) timer: Timer,
    pub(crate) delay: Delay,
    /// Nothing is sent before this: the connection is not open at its sender.
    pub(crate) opens: Instant,
    pub(crate) bytes_max: u32,
}

impl Pipe {
    /// Carries all that `from` gives to `to`, and its end.
    ///
    /// # Errors
    /// When either side broke; what was under way then is lost.
    pub(crate) async fn carry(
        self,
        from: impl AsyncRead + Unpin,
        to: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        // Pieces are bounded by the bytes that they are charged.
        let (sender, receiver) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(self.bytes_max as usize));
        let taking = self.take(from, sender, Arc::clone(&room));
        let giving = self.give(to, receiver, room);
        tokio::try_join!(taking, giving).map(|_| ())
    }

    async fn take(
        &self,
        mut from: impl AsyncRead + Unpin,
        sender: mpsc::UnboundedSender<(Instant, Piece)>,
        room: Arc<Semaphore>,
    ) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES_MAX as usize);
            let read = from.read_buf(&mut buffer).await;
            let due = Instant::now().max(self.opens) + self.delay.get();
            let (piece, last) = match read {
                Ok(0) => (Piece::End, true),
                Ok(_) => (Piece::Bytes(buffer.split().freeze()), false),
                Err(error) => (Piece::Broken(error), true),
            };
            if let Piece::Bytes(bytes) = &piece {
                // The semaphore is never closed.
                if let Ok(permit) = room.acquire_many(charge(bytes, self.bytes_max)).await {
                    permit.forget();
                }
            }
            if sender.send((due, piece)).is_err() || last {
                return Ok(());
            }
        }
    }

    async fn give(
        &self,
        mut to: impl AsyncWrite + Unpin,
        mut receiver: mpsc::UnboundedReceiver<(Instant, Piece)>,
        room: Arc<Semaphore>,
    ) -> io::Result<()> {
        while let Some((due, piece)) = receiver.recv().await {
            self.timer.until(due).await;
            match piece {
                Piece::Bytes(bytes) => {
                    to.write_all(&bytes).await?;
                    room.add_permits(charge(&bytes, self.bytes_max) as usize);
                }
                Piece::End => to.shutdown().await?,
                Piece::Broken(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What a piece takes of the room.
fn charge(bytes: &Bytes, bytes_max: u32) -> u32 {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    len.saturating_add(PIECE_BYTES).min(bytes_max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timer::Clock;
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::io::duplex;

    /// Runs `work` on a runtime with a timer.
    fn with_timer<F: Future>(work: impl FnOnce(Timer) -> F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let timer = Timer::default();
            let running = timer.clone();
            tokio::spawn(async move { running.run(Clock::new().unwrap()).await });
            work(timer).await
        })
    }

    fn pipe(timer: Timer, delay_ms: u64, bytes_max: u32) -> Pipe {
        Pipe {
            timer,
            delay: Duration::from_millis(delay_ms).into(),
            opens: Instant::now(),
            bytes_max,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever is written, in whatever pieces and with whatever room: all of it arrives,
        /// in order, none before its time, then the end; all of it within the delay and a
        /// little.
        #[test]
        fn bytes_arrive_whole_in_order_and_on_time(
            pieces in prop::collection::vec((0usize..40_000, 0u64..3), 1..12),
            delay_ms in 0u64..25,
            room in 1u32..100_000,
            window in 1usize..70_000,
        ) {
            with_timer(|timer| async move {
                let (mut near, from) = duplex(window);
                let (to, mut far) = duplex(window);
                let delay = Duration::from_millis(delay_ms);
                tokio::spawn(pipe(timer, delay_ms, room).carry(from, to));
                let sent = pieces.clone();
                let writer = tokio::spawn(async move {
                    // When each byte's write began, by its place.
                    let mut began = Vec::new();
                    let mut at = 0usize;
                    for (len, pause_ms) in sent {
                        let bytes: Vec<u8> = (at..at + len).map(|n| (n % 251) as u8).collect();
                        began.push((at, Instant::now()));
                        near.write_all(&bytes).await.unwrap();
                        at += len;
                        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                    }
                    near.shutdown().await.unwrap();
                    (began, at, Instant::now())
                });
                let mut seen = Vec::new();
                let mut buffer = vec![0; 8192];
                let mut arrived = Vec::new();
                loop {
                    let read = far.read(&mut buffer).await.unwrap();
                    arrived.push((seen.len(), Instant::now()));
                    if read == 0 {
                        break;
                    }
                    seen.extend_from_slice(&buffer[..read]);
                }
                let (began, total, ended) = writer.await.unwrap();
                assert_eq!(seen.len(), total);
                assert!(seen.iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
                for (place, at) in &arrived {
                    let sent = began.iter().rev().find(|(from, _)| from <= place).unwrap().1;
                    assert!(*at >= sent + delay, "byte {place} came {:?} early", sent + delay - *at);
                }
                let (_, end) = arrived.last().unwrap();
                // Little room makes it wait for the delay again and again.
                let turns = 2 + total.div_ceil((room as usize).min(window)) as u32;
                let late = end.saturating_duration_since(ended);
                assert!(late < delay * turns + Duration::from_secs(2), "{late:?} after the end");
            });
        }
    }

    #[test]
    fn no_more_is_taken_than_there_is_room_for() {
        with_timer(|timer| async move {
            let (mut near, from) = duplex(1024);
            let (to, _far) = duplex(1024);
            // Nobody reads at the far end.
            tokio::spawn(pipe(timer, 1, 300_000).carry(from, to));
            let writing = async {
                let mut written = 0usize;
                while near.write_all(&[7; 1000]).await.is_ok() {
                    written += 1000;
                    assert!(written < 10_000_000, "there is no bound");
                    WRITTEN.store(written, std::sync::atomic::Ordering::Relaxed);
                }
            };
            static WRITTEN: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
            let ended = tokio::time::timeout(Duration::from_millis(400), writing).await;
            assert!(ended.is_err(), "it ended");
            let written = WRITTEN.load(std::sync::atomic::Ordering::Relaxed);
            assert!(
                (200_000..320_000).contains(&written),
                "{written} bytes are under way"
            );
        });
    }

    #[test]
    fn a_long_way_costs_no_throughput() {
        const LEN: usize = 8 << 20;
        with_timer(|timer| async move {
            let (mut near, from) = duplex(64 << 10);
            let (to, mut far) = duplex(64 << 10);
            tokio::spawn(pipe(timer, 100, LINK_BYTES_MAX).carry(from, to));
            let began = Instant::now();
            tokio::spawn(async move {
                near.write_all(&vec![1; LEN]).await.unwrap();
                near.shutdown().await.unwrap();
            });
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            assert_eq!(all.len(), LEN);
            let took = began.elapsed();
            // A pipe that sent one piece a delay would take over 12 s.
            assert!(
                took > Duration::from_millis(100) && took < Duration::from_secs(3),
                "{took:?}"
            );
        });
    }

    #[test]
    fn a_delay_that_becomes_shorter_lets_no_byte_pass_another() {
        with_timer(|timer| async move {
            let (mut near, from) = duplex(1024);
            let (to, mut far) = duplex(1024);
            let pipe = pipe(timer, 150, 1000);
            let delay = pipe.delay.clone();
            tokio::spawn(pipe.carry(from, to));
            let began = Instant::now();
            near.write_all(b"1").await.unwrap();
            // The first byte is under way with the longer delay.
            tokio::time::sleep(Duration::from_millis(20)).await;
            delay.set(Duration::ZERO);
            near.write_all(b"2").await.unwrap();
            let mut seen = [0; 2];
            far.read_exact(&mut seen).await.unwrap();
            assert_eq!(&seen, b"12");
            assert!(began.elapsed() >= Duration::from_millis(150));
        });
    }

    #[test]
    fn nothing_is_sent_before_the_connection_is_open() {
        with_timer(|timer| async move {
            let (mut near, from) = duplex(1024);
            let (to, mut far) = duplex(1024);
            let mut pipe = pipe(timer, 5, 1000);
            let began = Instant::now();
            pipe.opens = began + Duration::from_millis(30);
            tokio::spawn(pipe.carry(from, to));
            near.write_all(b"x").await.unwrap();
            far.read_exact(&mut [0]).await.unwrap();
            assert!(began.elapsed() >= Duration::from_millis(35));
        });
    }
}
