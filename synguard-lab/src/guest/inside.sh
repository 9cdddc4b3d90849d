# Process 1 of the guest: mounts what a machine has, and becomes systemd.
cd "$ROOT"
# Everything of this machine, and what the guest changes of it in memory.
mount -t overlay guest -o "lowerdir=/,upperdir=upper,workdir=work" root
cd root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
# As systemd mounts it.
mount -t bpf -o mode=0700 bpf sys/fs/bpf
for folder in run tmp dev; do
    mount -t tmpfs -o mode=0755 "$folder" "$folder"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for node in full null random tty urandom zero; do
    : >"dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done

# Nothing of what this machine runs.
rm -rf etc/systemd/system/*.wants etc/systemd/system/*.requires usr/lib/systemd/system/*.wants \
    usr/lib/systemd/system-generators etc/systemd/system-generators
printf '[Unit]\nDefaultDependencies=no\nWants=systemd-journald.socket\n' \
    >etc/systemd/system/guest.target
# As images of containers have it: packages start and stop nothing.
rm -f usr/sbin/policy-rc.d
# Installing a package does not wait for an index of manual pages.
rm -f var/lib/man-db/auto-update

mkdir machine
pivot_root . machine
# Shared, as on a machine: systemd hands credentials over by a mount.
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -euc '
umount -l /machine
rmdir /machine
mount --make-rshared /
exec /lib/systemd/systemd --system --unit=guest.target --log-target=journal --show-status=no
'
