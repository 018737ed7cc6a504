# The first process of a machine of the tests' own (tests/systemd/machine.py), which becomes its systemd. It comes in
# new mount, pid, uts, ipc and cgroup namespaces; the network is the host's.
#
#   $1  an empty directory: the root is put together there       $2  the one directory that is shared with the host
#
# Nothing that runs here may touch the host: a systemd that boots clears /tmp, sets kernel variables, remounts. So
# the host's files are read-only, what is written (all but $2) goes into tmpfs, there are no devices but harmless
# ones, no sysfs, no unit of the distribution's, and few capabilities that reach beyond. Whatever fails ends it.

set -eu
root=$1 shared=$2

mount --make-rprivate /
mount --bind / "$root"
mount -o remount,bind,ro "$root"

fresh() { mount -t tmpfs -o "mode=$1" tmpfs "$root$2"; }
fresh 755 /run
fresh 1777 /tmp
fresh 755 /var
fresh 755 /srv
fresh 755 /dev
fresh 755 /sys
mkdir -p "$root/var/tmp" "$root/var/log" "$root/var/lib/systemd" "$root/run/lock" "$root/run/sshd"
ln -s ../run "$root/var/run"

mkdir "$root/run/etc" "$root/run/etc/upper" "$root/run/etc/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$root/run/etc/upper,workdir=$root/run/etc/work" overlay "$root/etc"
rm -rf "$root/etc/systemd" "$root/etc/machine-id"
mkdir -p "$root/etc/systemd/system"
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"

for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
    IFS=: read -r name major minor <<END
$node
END
    mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done
ln -s /proc/self/fd "$root/dev/fd"
ln -s pts/ptmx "$root/dev/ptmx"
mkdir -m 1777 "$root/dev/shm" "$root/dev/pts"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"

mount -t proc proc "$root/proc"
for path in sys sysrq-trigger; do
    [ -e "$root/proc/$path" ] || continue
    mount --bind "$root/proc/$path" "$root/proc/$path"
    mount -o remount,bind,ro "$root/proc/$path"
done
mkdir -p "$root/sys/fs/cgroup"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"

mkdir -p "$root$shared"
mount --bind "$shared" "$root$shared"

cd "$root"
pivot_root . .
umount -l .
cd /
hostname machine

# Is it so? Otherwise nothing is started here.
read -r _ at _ options _ </proc/self/mounts
[ "$at" = / ]
case ,$options, in *,ro,*) ;; *) exit 71 ;; esac
for path in /usr /bin /lib /root /home /opt /proc/sys/kernel/hostname; do
    ! [ -w "$path" ] || exit 72
done
for path in /tmp /var /run /srv /dev /sys /etc; do
    case $(stat -f -c %T "$path") in tmpfs | overlayfs) ;; *) exit 73 ;; esac
done

# The only units there are. Everything that the distribution starts at boot is not among them.
cd /etc/systemd/system
printf '[Journal]\nStorage=volatile\nAudit=no\nReadKMsg=no\nForwardToSyslog=no\n' >../journald.conf
for name in sysinit basic shutdown umount sockets; do
    printf '[Unit]\nDefaultDependencies=no\n' >$name.target
done
cat >multi-user.target <<END
[Unit]
Requires=sysinit.target basic.target systemd-journald.service
After=sysinit.target basic.target systemd-journald.service
END
cat >systemd-journald.socket <<END
[Unit]
DefaultDependencies=no
[Socket]
ListenStream=/run/systemd/journal/stdout
ListenDatagram=/run/systemd/journal/socket
SocketMode=0666
PassCredentials=yes
PassSecurity=yes
ReceiveBuffer=8M
Service=systemd-journald.service
END
cat >systemd-journald.service <<END
[Unit]
DefaultDependencies=no
Requires=systemd-journald.socket
After=systemd-journald.socket
[Service]
Type=notify
ExecStart=/lib/systemd/systemd-journald
StandardOutput=null
FileDescriptorStoreMax=1024
Restart=always
RestartSec=0
END
cd /

export container=trafficd-test SYSTEMD_UNIT_PATH=/etc/systemd/system SYSTEMD_GENERATOR_PATH=/nowhere
export SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/nowhere PATH=/usr/sbin:/usr/bin:/sbin:/bin
without=-sys_module,-sys_boot,-sys_time,-sys_rawio,-syslog,-mknod,-net_admin,-mac_admin,-mac_override,-audit_control
without=$without,-audit_read,-bpf,-perfmon,-wake_alarm,-block_suspend,-linux_immutable
exec setpriv --bounding-set="$without" /lib/systemd/systemd --system --unit=multi-user.target --show-status=no
