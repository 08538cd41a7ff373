//! End-to-end tests of orlop with real clients.
