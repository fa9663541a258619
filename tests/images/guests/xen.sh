#!/busybox sh
# init of dom0 in the guest `xen`: tell Xen's console, then spin in user mode.
/busybox mkdir -p /dev
/busybox mount -t devtmpfs dev /dev
echo dom0 is up > /dev/console
while :; do :; done
