#!/bin/sh
# The first process of a node: it makes what a machine gives to a kubelet, runs containerd, and
# runs the kubelet as a service of systemd would. When it ends, all of the node ends.
#
#   init.sh DIR LOGS NAME ADDRESS PODS
#
# DIR has all that the node writes, and DIR/bin its programs; LOGS/NAME-*.log are its logs; PODS
# is the network of its pods.
set -eu
dir=$1 logs=$2 name=$3 address=$4 pods=$5

echo "$name" >/proc/sys/kernel/hostname
# What is written to the machine's directories goes to DIR, and what is in memory ends with the node.
mount -t tmpfs tmpfs /run
for path in etc var; do
    mkdir -p "$dir/over/$path" "$dir/work/$path"
    mount -t overlay -o "lowerdir=/$path,upperdir=$dir/over/$path,workdir=$dir/work/$path" overlay "/$path"
done
# These have nothing of the machine's own, and are on a file system that can be under an overlay.
for path in /etc/kubernetes /var/lib/kubelet /var/lib/etcd /var/lib/containerd \
    /var/lib/cni /var/log/pods /var/log/containers; do
    mkdir -p "$path" "$dir/disk$path"
    mount --bind "$dir/disk$path" "$path"
done
mount --make-rshared /

# A resolver that CoreDNS can be told of. Nobody answers there.
rm -f /etc/resolv.conf
echo "nameserver 172.30.0.254" >/etc/resolv.conf
printf '127.0.0.1 localhost\n%s %s\n' "$address" "$name" >/etc/hosts
echo 1 >/proc/sys/net/ipv4/ip_forward

# containerd and runc may lack CAP_SYS_RESOURCE, and cannot lower an OOM score then.
cat >"$dir/containerd.toml" <<TOML
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  sandbox_image = "localhost/pause:1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
TOML
mkdir "$dir/cni"
cat >"$dir/cni/bridge.conflist" <<CNI
{ "cniVersion": "0.4.0", "name": "pods", "plugins": [
  { "type": "bridge", "bridge": "pods", "isGateway": true, "ipMasq": true, "hairpinMode": true,
    "ipam": { "type": "host-local", "routes": [{ "dst": "0.0.0.0/0" }],
              "ranges": [[{ "subnet": "$pods" }]] } },
  { "type": "portmap", "capabilities": { "portMappings": true } }
] }
CNI
containerd --config "$dir/containerd.toml" >"$logs/$name-containerd.log" 2>&1 &

# bin/systemctl says whether the kubelet shall run, and finds it by its id.
while :; do
    if [ -e /run/kubelet.wanted ]; then
        KUBELET_KUBEADM_ARGS=
        [ ! -r /var/lib/kubelet/kubeadm-flags.env ] || . /var/lib/kubelet/kubeadm-flags.env
        kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
            --kubeconfig=/etc/kubernetes/kubelet.conf --config=/var/lib/kubelet/config.yaml \
            $KUBELET_KUBEADM_ARGS >>"$logs/$name-kubelet.log" 2>&1 &
        echo $! >/run/kubelet.pid
        wait $! || :
        rm -f /run/kubelet.pid
    fi
    sleep 0.2
done
