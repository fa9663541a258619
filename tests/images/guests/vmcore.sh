#!/busybox sh
# init of the guest whose /proc/vmcore is crashed-linux.vmcore: it loads a second kernel by kexec, crashes while CPU 1 is
# in a user program, and that kernel writes /proc/vmcore to a disk. Debian 12's linux-image-amd64 6.1, kexec-tools and
# busybox-static; QEMU with two CPUs, 768 MiB, two virtio disks, -append "console=ttyS0 pti=on crashkernel=256M".
# /dev/vdb holds the initramfs of the second kernel: the same one without vmlinuz and kexec. Kept of the file are its
# notes and the pages that `x86tables extract` keeps.
/busybox mkdir -p /proc /dev /sys
/busybox mount -t proc proc /proc
/busybox mount -t devtmpfs dev /dev
/busybox mount -t sysfs sys /sys
for m in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
    /busybox insmod /mods/$m.ko
done
if [ -e /proc/vmcore ]; then
    /busybox dd if=/proc/vmcore of=/dev/vda bs=1M
    /busybox ls -l /proc/vmcore # its size: a disk has no end of a file
    /busybox sync
    /busybox poweroff -f
fi
/busybox dd if=/dev/vdb of=/initrd bs=1M
/usr/sbin/kexec -s -p /vmlinuz --initrd=/initrd --command-line="console=ttyS0 nr_cpus=1 reset_devices"
/busybox taskset 2 /busybox sh -c "while :; do :; done" &
echo READY # `info registers -a`: GDTR, IDTR and TR stay as they are
/busybox sleep 8
echo 1 > /proc/sys/kernel/sysrq
echo c > /proc/sysrq-trigger
