#!/bin/sh
# Brings the machine up. What the login prompt does not need runs in the background.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=0755 tmpfs /run
mount -o remount,rw /
modprobe -q -a virtio_pci virtio_blk virtio_net
hostname -F /etc/hostname
ip link set lo up

# A configuration drive is there from the start, so the prompt already shows the right name. The network takes longer.
if ! /etc/metadata drive; then
    /etc/metadata network &
fi

for interface in /sys/class/net/*; do
    name=${interface##*/}
    [ "$name" = lo ] || udhcpc -b -S -t 5 -T 1 -A 2 -O staticroutes -s /etc/udhcpc.script -i "$name" > /dev/null 2>&1 &
done

(
    modprobe -q -a virtio_console virtio_balloon virtio-rng button evdev
    # busybox's acpid only looks at /dev/input/event* that are there when it starts.
    tries=0
    until [ -e /dev/input/event0 ] || [ $tries = 50 ]; do tries=$((tries + 1)); sleep 0.1; done
    acpid -c /etc/acpi -l /dev/null

    tries=0
    until [ -d /sys/class/virtio-ports ] || [ $tries = 20 ]; do tries=$((tries + 1)); sleep 0.1; done
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat "$port/name" 2>/dev/null)" = org.qemu.guest_agent.0 ] || continue
        qemu-ga -d -m virtio-serial -p "/dev/${port##*/}" -t /run -f /run/qemu-ga.pid
    done
) &

(
    # The image has no host key; each machine makes its own at its first start. ed25519, because an RSA key takes many
    # seconds under emulation.
    [ -s /etc/dropbear/host_key ] || dropbearkey -t ed25519 -f /etc/dropbear/host_key > /dev/null 2>&1
    # -s: the console's password is no secret, so it does not open the network.
    dropbear -s -r /etc/dropbear/host_key
) &

# The disk may be larger than the image was; the file system covers the whole disk, without a partition table.
root=$(awk '$2 == "/" && $1 ~ /^\/dev\// { print $1 }' /proc/mounts)
[ -z "$root" ] || resize2fs "$root" > /dev/null 2>&1 &
exit 0
