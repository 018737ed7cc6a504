# What the `systemd` driver does with one unit, in POSIX sh: no more than systemctl and journalctl is needed where it
# runs. trafficd/swap/systemd/driver.py sends it, and tells it in its arguments, any of which may be empty:
#
#   action     check | swap | retire | explain
#   scope      --system | --user
#   unit       what is to run (swap), to be stopped (retire), or to be looked at
#   before     swap: the unit that runs now, where it is another one
#   beside     swap: yes where `before` goes on running
#   file       an EnvironmentFile of `unit`, and
#   version    what it is to say
#
# The last line that it writes is the reason, where it fails. Exit status 3: nothing was touched.

action=$1 scope=$2 unit=$3 before=$4 beside=$5 file=$6 version=$7
settle=1  # s that a unit has to stay up
lines=20  # of the journal

LC_ALL=C SYSTEMD_COLORS=0 SYSTEMD_PAGER='' SYSTEMD_URLIFY=0
export LC_ALL SYSTEMD_COLORS SYSTEMD_PAGER SYSTEMD_URLIFY
if [ "$scope" = --user ]; then # a session of sshd's without PAM does not have it
    XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
    export XDG_RUNTIME_DIR
fi

refuse() {
    printf '%s\n' "$1"
    exit 3
}

fail() {
    printf '%s\n' "$1"
    exit 1
}

ctl() { systemctl "$scope" --no-ask-password --no-pager "$@"; }

property() { ctl show --property "$1" --value -- "$2"; }

known() { # whether systemd has unit $1
    loaded=$(property LoadState "$1") || refuse "systemd does not answer ($scope)"
    case $loaded in
        loaded) return 0 ;;
        not-found) why="there is no such unit" ;;
        masked) why="it is masked" ;;
        *) why="systemd cannot use it: $loaded $(property LoadError "$1")" ;;
    esac
    return 1
}

writable() { # whether the version can be written, and nothing but a version is lost
    [ -n "$file" ] || return 0
    directory=${file%/*}
    [ -d "${directory:-/}" ] || refuse "version_file: there is no directory ${directory:-/}"
    [ -w "${directory:-/}" ] || refuse "version_file: $(id -un) may not write into ${directory:-/}"
    [ -e "$file" ] || return 0
    [ -f "$file" ] && [ -r "$file" ] || refuse "version_file: $file is no file that can be read"
    if grep -qvE '^(#.*|VERSION=.*|)$' "$file"; then
        refuse "version_file: $file has more in it than VERSION=; name another (a unit may have several of them)"
    fi
}

written() { # a power loss leaves the old file, or the new one
    [ -n "$file" ] || return 0
    printf '# written by trafficd\nVERSION=%s\n' "$version" >"$file.trafficd" &&
        chmod 644 "$file.trafficd" &&
        { sync "$file.trafficd" 2>/dev/null || sync; } &&
        mv -f "$file.trafficd" "$file" &&
        { sync "${file%/*}/" 2>/dev/null || sync; }
}

stopped() { # $1 does not run, nor is it going to
    loaded=$(property LoadState "$1")
    active=$(property ActiveState "$1") || return 1
    case $loaded-$active in not-found-inactive | not-found-failed) return 0 ;; esac
    ctl stop -- "$1"
}

enabled() { [ "$(ctl is-enabled -- "$1" 2>/dev/null)" = enabled ]; }

sync_journal() { journalctl --sync 2>/dev/null; } # only root may; else the last lines may be missing

mark() { # from here on. Not by --after-cursor: with matches, journalctl leaves out the first line after it
    sync_journal
    since=$(journalctl -q -n 0 --show-cursor 2>/dev/null | sed -n 's/^-- cursor: .*;t=\([0-9a-f]*\);.*/\1/p')
    [ -n "$since" ] || return 0
    since=$((0x$since + 1)) # microseconds
    since=@$((since / 1000000)).$(printf '%06d' $((since % 1000000)))
}

journal() { # what fits the matches, since the mark
    journalctl -q --no-pager -o cat -n "$lines" ${since:+"--since=$since"} "$@" 2>/dev/null
}

by_unit() { # the unit's own words, by the matches of the journal
    if [ "$scope" = --user ]; then
        journal "_SYSTEMD_USER_UNIT=$unit" "_UID=$(id -u)" "$@"
    else
        journal "_SYSTEMD_UNIT=$unit" "$@"
    fi
}

about_unit() { # and what systemd says about it
    if [ "$scope" = --user ]; then journal --user-unit "$unit"; else journal -u "$unit"; fi
}

state() { # how the unit is, in words
    active=$(property ActiveState "$unit")
    restarts=$(property NRestarts "$unit")
    result=$(property Result "$unit")
    number=$(property ExecMainStatus "$unit")
    words="it is $active"
    [ "$result" = success ] || words="$words ($result)"
    case $(property ExecMainCode "$unit") in
        1) [ "$active" = active ] || words="$words, exit status $number" ;;
        2 | 3) words="$words, killed by signal $number" ;;
    esac
    case ${restarts:-0} in 0) ;; *) words="$words, systemd has started it again $restarts times" ;; esac
}

with_words() { # $1, and the last words of the unit, $2
    last=$(printf '%s\n' "$2" | sed -n '/[^[:space:]]/h; ${x;p;}')
    printf '%s\n' "$1${last:+; it said: $last}"
}

gone() { # it did not come up: say why, and leave nothing that goes on trying
    state
    sync_journal
    about_unit
    own=$(by_unit)
    ctl stop -- "$unit" 2>/dev/null
    with_words "$1: $words" "$own"
    exit 1
}

check() {
    command -v systemctl >/dev/null || refuse "there is no systemctl"
    known "$unit" || refuse "$why (systemctl cat $unit)"
    writable
}

swap() {
    check
    [ -z "$before" ] || [ "$beside" = yes ] || stopped "$before" || fail "$before could not be stopped"
    stopped "$unit" || fail "it could not be stopped"
    written || fail "version_file: $file cannot be written"
    ctl reset-failed -- "$unit" 2>/dev/null # or systemd would count the starts of before
    # Called off: systemd would go on starting it without us.
    trap 'ctl stop --no-block -- "$unit"; exit 1' HUP INT TERM
    mark
    ctl start -- "$unit" || gone "it did not start"
    sleep $settle
    active=$(property ActiveState "$unit") restarts=$(property NRestarts "$unit")
    case $active-${restarts:-0} in active-0 | reloading-0) ;; *) gone "it did not stay up" ;; esac
    hand_over
}

hand_over() { # what starts with the host
    [ -n "$before" ] && enabled "$before" || return 0
    enabled "$unit" || ctl enable -- "$unit" || gone "it cannot be enabled, as $before is"
    [ "$beside" = yes ] || ctl disable -- "$before" || fail "$before is stopped, and cannot be disabled"
}

retire() {
    command -v systemctl >/dev/null || refuse "there is no systemctl"
    stopped "$unit" || fail "it could not be stopped"
    ! enabled "$unit" || ctl disable -- "$unit" || fail "it is stopped, and cannot be disabled"
}

explain() {
    state
    sync_journal
    since=''
    invocation=$(property InvocationID "$unit")
    own=$(by_unit ${invocation:+"_SYSTEMD_INVOCATION_ID=$invocation"})
    [ -n "$own" ] || own=$(by_unit)
    printf '%s\n' "$own"
    with_words "$words" "$own"
}

case $action in
    check | swap | retire | explain) "$action" ;;
    *) refuse "unknown action $action" ;;
esac
