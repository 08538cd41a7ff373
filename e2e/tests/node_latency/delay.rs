//! A way for UDP that takes its time in each direction.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Hands packets to a target, and those of the target back, each after a time. Ends when dropped.
pub(crate) struct Delay {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

type Late = (Instant, Vec<u8>, SocketAddr, Arc<UdpSocket>);

impl Delay {
    pub(crate) fn start(host: IpAddr, target: SocketAddr, way: Duration) -> std::io::Result<Self> {
        let front = Arc::new(UdpSocket::bind((host, 0))?);
        let back = Arc::new(UdpSocket::bind((host, 0))?);
        let address = front.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = channel::<Late>();
        for socket in [&front, &back] {
            socket.set_read_timeout(Some(LOOK))?;
        }
        // An answer goes to who asked with its nonce.
        let askers = Arc::new(std::sync::Mutex::new(HashMap::<Vec<u8>, SocketAddr>::new()));
        let mut threads = Vec::new();
        let (there, back_again) = ((Arc::clone(&front), Arc::clone(&back)), (back, front));
        for (n, (from, to)) in [there, back_again].into_iter().enumerate() {
            let (stop, sender, askers) = (stop.clone(), sender.clone(), askers.clone());
            threads.push(std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((size, who)) = from.recv_from(&mut buffer) else {
                        continue;
                    };
                    let bytes = buffer[..size].to_vec();
                    let nonce = bytes.get(8..).unwrap_or_default().to_vec();
                    let Ok(mut askers) = askers.lock() else {
                        return;
                    };
                    let to_whom = match n {
                        0 => {
                            askers.insert(nonce, who);
                            target
                        }
                        _ => match askers.remove(&nonce) {
                            Some(asker) => asker,
                            None => continue,
                        },
                    };
                    let at = Instant::now() + way;
                    if sender.send((at, bytes, to_whom, Arc::clone(&to))).is_err() {
                        return;
                    }
                }
            }));
        }
        let ends = stop.clone();
        threads.push(std::thread::spawn(move || hand_on(&receiver, &ends)));
        Ok(Self {
            address,
            stop,
            threads,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// All packets take the same time, so they leave in the order in which they came.
fn hand_on(packets: &Receiver<Late>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match packets.recv_timeout(LOOK) {
            Ok((at, bytes, to, by)) => {
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                // Nobody listens there: as on a way that ends.
                let _ = by.send_to(&bytes, to);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
