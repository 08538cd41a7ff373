#!/bin/sh
# What kubeadm asks of systemd, on a node whose first process runs the kubelet (init.sh).
stop() {
    while pid=$(cat /run/kubelet.pid 2>/dev/null) && kill "$pid" 2>/dev/null; do sleep 0.1; done
}
# There is no other service: kubeadm asks for a resolver's and a firewall's too.
if [ "$1" = is-active ] && [ "$2" != kubelet ]; then
    echo inactive
    exit 3
fi
case "$1" in
    start) touch /run/kubelet.wanted ;;
    restart) stop; touch /run/kubelet.wanted ;;
    stop) rm -f /run/kubelet.wanted; stop ;;
    is-active) if [ -e /run/kubelet.wanted ]; then echo active; else echo inactive; exit 3; fi ;;
    *) ;; # daemon-reload, is-enabled, status: nothing is wrong
esac
