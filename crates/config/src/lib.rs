//! etcd's command line, environment and configuration file, read into one Config.
