//! Closed- and open-loop load on an etcd v3 endpoint, with percentiles.
