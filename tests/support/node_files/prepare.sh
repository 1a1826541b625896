# Runs first inside the node's namespaces. $1: a folder of this run on disk; $2: the node's address.
# Everything below is private to the namespaces and goes with them.
set -eu
folder=$1
address=$2

# sysfs shows the devices of the network namespace in which it was mounted. The order matters: a new sysfs hides the
# cgroup mounts, and a mount made shared first would lose them here when the copy is taken away.
mkdir -p "$folder/cgroups"
mount --rbind /sys/fs/cgroup "$folder/cgroups"
mount -t sysfs sysfs /sys
mount --rbind "$folder/cgroups" /sys/fs/cgroup
umount -l "$folder/cgroups"
# Containers' mounts must reach the kubelet and back.
mount --make-rshared /

# Programs keep their usual paths, and this machine keeps its files.
for path in lib log; do
  mkdir -p "$folder/var-$path"
  mount --bind "$folder/var-$path" "/var/$path"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock

# The kubelet sets these for the whole machine; here it writes to files instead.
mkdir -p "$folder/sysctl"
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file="$folder/sysctl/$(echo "${setting%=*}" | tr / _)"
  echo "${setting#*=}" > "$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done

hostname node1
ip link set lo up
ip link add node0 type bridge
ip address add "$address/24" dev node0
ip link set node0 up
# A route to nowhere: programs look for a default route to learn their address, and no packet leaves.
ip route add default dev node0
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables
