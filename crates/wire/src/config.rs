//! Settings of a server and their defaults.

use std::time::Duration;

use ledger::{Ledger, Limits};

/// Go's defaults.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2 * 3600);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Settings that hold for a whole server. Every queue and wait has its limit here.
#[derive(Debug, Clone)]
pub struct Config {
    /// Serving threads, each with its own runtime; a connection stays on one. At least 1.
    pub workers: usize,
    /// Largest request message of a gRPC call in bytes; larger ones are refused by their prefix.
    pub max_message_bytes: usize,
    /// Largest body of a plain HTTP request in bytes.
    pub max_http_body_bytes: usize,
    /// Bytes of requests that one connection may hold in memory before a handler has them: those
    /// that are incomplete, and unary ones that wait because of `max_unread_bytes`.
    pub max_partial_bytes: usize,
    /// Response bytes of unary calls that one connection may leave unread; over it, its further
    /// calls wait. A connection that has read everything may always have one answer.
    pub max_unread_bytes: usize,
    /// Response bytes that a stream's queue takes before it refuses more ([`crate::Outbound`]).
    pub stream_queue_bytes: usize,
    /// Accounts of what is held for clients, with limits for the whole process: the workers share
    /// them equally, and a connection gets three quarters of its worker's part at most. See
    /// [`ledger::Account`].
    pub ledger: Ledger,
    /// Open connections over all listeners that serve gRPC; more are accepted and closed at once.
    /// Those that serve plain HTTP only have 512 each, or as many as this if it is less. The limit
    /// on open files and the ledger's account of connections may allow fewer.
    pub max_connections: usize,
    /// Connections of one listener that have not sent a request yet; a new one takes the place of
    /// that which has waited longest.
    pub max_half_open: usize,
    /// Streams that a client may have open on one connection, as announced to it; as in etcd, any
    /// number if zero.
    pub max_concurrent_streams: u32,
    /// Calls that may be open on one connection, whatever was announced: bounds the memory that
    /// idle streams of one client cost. More are answered with `ResourceExhausted`.
    pub max_calls_per_connection: usize,
    /// HTTP/2 receive window of a stream in bytes.
    pub stream_window_bytes: u32,
    /// HTTP/2 receive window of a connection in bytes.
    pub connection_window_bytes: u32,
    /// Response bytes that HTTP/2 buffers for a stream beside its queue.
    pub max_send_buffer_bytes: usize,
    /// Largest set of request headers in bytes; a larger one is refused with its call. What is
    /// far larger ends the connection.
    pub max_header_bytes: u32,
    /// After this much silence the server pings (etcd: `--grpc-keepalive-interval`). As in etcd,
    /// zero here or in `keepalive_timeout` stands for the defaults of both.
    pub keepalive_interval: Duration,
    /// How long a pinged client may take to answer (etcd: `--grpc-keepalive-timeout`).
    pub keepalive_timeout: Duration,
    /// Shortest time between a client's pings (etcd: `--grpc-keepalive-min-time`); a client that
    /// keeps pinging faster loses its connection, with Go's `too_many_pings`. Any pace if zero.
    pub keepalive_min_time: Duration,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a new connection may take to show what protocol it speaks, and an HTTP/1.1 one to
    /// send a request's head (idle time between requests counts).
    pub first_bytes_timeout: Duration,
    /// How long a unary or HTTP request's body may take to arrive.
    pub body_timeout: Duration,
    /// How long the socket of an HTTP/1.1 client may take nothing of an answer.
    pub unread_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            workers: 1,
            // etcd's --max-request-bytes and what it adds for the rest of a request.
            max_message_bytes: 1_572_864 + 512 * 1024,
            max_http_body_bytes: 1024 * 1024,
            max_partial_bytes: 64 * 1024 * 1024,
            max_unread_bytes: 64 * 1024 * 1024,
            stream_queue_bytes: 4 * 1024 * 1024,
            ledger: Ledger::new(Limits::of_memory(8 << 30)),
            max_connections: 20_000,
            max_half_open: 256,
            max_concurrent_streams: u32::MAX,
            max_calls_per_connection: 100_000,
            stream_window_bytes: 1024 * 1024,
            connection_window_bytes: 4 * 1024 * 1024,
            max_send_buffer_bytes: 400 * 1024,
            max_header_bytes: 1024 * 1024,
            keepalive_interval: KEEPALIVE_INTERVAL,
            keepalive_timeout: KEEPALIVE_TIMEOUT,
            keepalive_min_time: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(10),
            first_bytes_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            unread_timeout: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// When the server pings, and how long it waits for the answer.
    pub(crate) fn keepalive(&self) -> (Duration, Duration) {
        match self.keepalive_interval.is_zero() || self.keepalive_timeout.is_zero() {
            true => (KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT),
            false => (self.keepalive_interval, self.keepalive_timeout),
        }
    }

    /// Streams of a connection as announced to its client. A call ends with its answer, a stream
    /// when the client has read it or gone: of answers too small to be counted as unread this
    /// bounds the number. Twice the calls, so that the limit on those refuses first, with a
    /// reason.
    pub(crate) fn announced_streams(&self) -> u32 {
        let twice = self.max_calls_per_connection.saturating_mul(2);
        let most = u32::try_from(twice).unwrap_or(u32::MAX);
        match self.max_concurrent_streams {
            0 => most,
            asked => asked.min(most),
        }
    }

    /// Refuses what cannot work.
    pub(crate) fn check(&self) -> Result<(), crate::Error> {
        let wrong = |what: &str| Err(crate::Error::Settings(what.to_owned()));
        if self.workers == 0 || self.workers > 1024 {
            return wrong("the number of serving threads must lie between 1 and 1024");
        }
        let window = 1..=(1 << 31) - 1;
        if !window.contains(&self.stream_window_bytes)
            || !window.contains(&self.connection_window_bytes)
        {
            return wrong("HTTP/2 windows must lie between 1 byte and 2 GiB - 1");
        }
        if u32::try_from(self.max_send_buffer_bytes).is_err() {
            return wrong("the HTTP/2 send buffer must be less than 4 GiB");
        }
        if self.max_connections == 0 || self.max_calls_per_connection == 0 {
            return wrong("the limits on connections and calls must be at least 1");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_means_what_it_means_to_etcd() {
        let with = |interval_s, timeout_s, max_concurrent_streams| Config {
            keepalive_interval: Duration::from_secs(interval_s),
            keepalive_timeout: Duration::from_secs(timeout_s),
            max_concurrent_streams,
            ..Config::default()
        };
        let defaults = (KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT);
        assert_eq!(with(5, 0, 0).keepalive(), defaults);
        assert_eq!(with(0, 5, 0).keepalive(), defaults);
        let own = (Duration::from_secs(5), Duration::from_secs(7));
        assert_eq!(with(5, 7, 0).keepalive(), own);
        assert_eq!(with(5, 7, 0).announced_streams(), 200_000);
        assert_eq!(with(5, 7, 3).announced_streams(), 3);
        assert_eq!(with(5, 7, u32::MAX).announced_streams(), 200_000);
    }
}
