# Makes room for a guest, in a mount namespace of its own: $ROOT is an empty folder, $NAME the name
# of the guest's control group, $INSIDE the script that goes on.
mount -t tmpfs guest "$ROOT"
mkdir "$ROOT/cgroup" "$ROOT/upper" "$ROOT/work" "$ROOT/root"

# A branch of the control groups, of which systemd will make more.
mount -t cgroup2 guest "$ROOT/cgroup"
mkdir "$ROOT/cgroup/$NAME"
echo $$ >"$ROOT/cgroup/$NAME/cgroup.procs"
umount "$ROOT/cgroup"

exec unshare --cgroup --uts --ipc --pid --fork --kill-child sh -eu -c "$INSIDE"
