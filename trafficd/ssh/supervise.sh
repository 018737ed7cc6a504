# A small parent for one command on this host: it outlives the connection that brought it. The twin of
# trafficd/swap/supervise.py, in POSIX sh, as nothing of ours is installed here; it needs Linux and flock(1).
#
# It comes on the standard input of a shell that leads a session of its own (sshd makes one), within braces, so that
# a connection lost on the way runs nothing. Before it stand, quoted (trafficd/ssh/script.py):
#
#   action     run, or end: see that the run is over, whoever runs it
#   nonce      what our lines begin with, since a login shell may have said something before
#   name slot  of the run, and of what two commands must not work on at once
#   limit patience grace killed_by     hundredths of a second
#   kept cap   bytes of output
#   environment()                      exports what the command is told
#   $@         the command
#
# Everything is decided while it holds the lock of the slot:
#
# - RUN/exit is there already: the command ran to its end; that is told again.
# - RUN/end: it was called off; it is not started any more.
# - The lock names a supervisor that was killed: what is left of its process group is ended first.
# - RUN/begun, and nobody runs it: its supervisor was killed, or the host restarted. Nobody knows what it did; it is
#   not run again.
# - Otherwise the command runs, once.
#
# It leaves in ~/.trafficd
#
#   locks/SLOT         "PID START EPOCH RUN" while the command runs, else empty
#   runs/NAME/output   what the command wrote: the end of it, when it wrote too much
#   runs/NAME/exit     "exit N" | "signal N" | "timeout" | "ended" | "killed" | "error TEXT"; by a rename
#
# and says "NONCE end WORD", and then the end of the output. A shell cannot tell an exit status of 128+N from signal N;
# it is taken for the signal.

umask_before=$(umask)
umask 077
exec 2>/dev/null
base=$HOME/.trafficd
run=$base/runs/$name
lock=$base/locks/$slot
poll=10      # between two looks, where sleep knows fractions
beat_every=500

say() { printf '%s %s\n' "$nonce" "$1"; }

fail() { # nothing was begun
    say "end error $1"
    exit 0
}

nap() { sleep 0.1 || sleep 1; }

now() { # in hundredths of a second, since the boot
    read -r up _ </proc/uptime
    now=${up%.*}${up#*.}
}

look() { # state, group and start of process $1; empty when there is none
    state='' group='' start=''
    read -r line <"/proc/$1/stat" || return 0
    case $line in
        *") "*) ;;
        *) line=$(tr '\n' ' ' <"/proc/$1/stat") ;; # a name with a line break
    esac
    # shellcheck disable=SC2086
    set -- ${line##*) }
    state=$1 group=$3 start=${20}
}

members() { # the live processes of group $1, without us and $2
    found=''
    for path in /proc/[0-9]*; do
        pid=${path#/proc/}
        case $pid in "$$" | "$2") continue ;; esac
        look "$pid"
        case $state in '' | Z | X) continue ;; esac
        [ "$group" = "$1" ] && found="$found $pid"
    done
}

end_group() { # TERM to the members of $1 without us and $2, KILL to those left after the grace; whether all are gone
    for number in TERM KILL; do
        now
        by=$((now + grace))
        [ $number = KILL ] && by=$((now + killed_by))
        members "$1" "$2"
        # shellcheck disable=SC2086
        [ -z "$found" ] || kill -s $number $found
        while [ -n "$found" ]; do
            now
            [ "$now" -gt $by ] && break
            nap
            members "$1" "$2"
            # shellcheck disable=SC2086
            [ $number = TERM ] || [ -z "$found" ] || kill -s KILL $found # those forked while we looked
        done
        [ -z "$found" ] && return 0
    done
    return 1
}

epoch() { # the boot and the pid namespace, within which a pid and a start time name a process
    read -r boot </proc/sys/kernel/random/boot_id
    epoch=$boot/$(readlink /proc/self/ns/pid)
}

orphans() { # left: the group of a supervisor that was killed, if members of it live
    left='' owner=''
    read -r leader began age owner <"$lock" || return 0
    epoch
    [ "$age" = "$epoch" ] || return 0 # of another boot: gone
    look "$leader"
    case $state in '' | Z) ;; *) return 0 ;; esac # its pid is somebody else's by now, so the group is gone
    [ -z "$start" ] || [ "$start" = "$began" ] || return 0
    members "$leader" 0
    [ -z "$found" ] || left=$leader
}

ended() { [ -s "$run/exit" ]; }

leave() { # how it ended
    printf '%s\n' "$1" >"$run/exit.new" && mv "$run/exit.new" "$run/exit"
    word=$1
}

tell() { # how it ended, to whoever listens
    ended && read -r word <"$run/exit"
    say "end $word"
    tail -c "$kept" "$run/output"
    exit 0
}

acquire() { # take the lock
    now
    until=$((now + patience))
    beat=$now
    while ! flock -n 9; do
        ended && tell
        [ $action = run ] && [ -e "$run/end" ] && fail "it was called off"
        now
        if [ "$now" -gt $until ]; then
            read -r leader _ <"$lock"
            say "busy ${leader:-unknown}"
            exit 0
        fi
        if [ "$now" -gt $((beat + beat_every)) ]; then
            beat=$now
            say wait # where nobody listens any more this ends us
        fi
        nap
    done
}

trim() {
    size=$(wc -c <"$run/output")
    [ "$size" -le "$cap" ] && return 0
    tail -c "$kept" "$run/output" >"$run/output.new"
    : >"$run/output"
    cat "$run/output.new" >>"$run/output"
}

guard() { # beside the command: ends it at its time, or when told to
    read -r self _ </proc/self/stat
    looks=0
    while :; do
        nap
        look "$$"
        [ "$start" = "$mine" ] || exit 0 # our supervisor was killed
        now
        if [ -e "$run/end" ] || [ "$now" -ge "$deadline" ]; then
            end_group "$$" "$self"
            exit 0
        fi
        looks=$((looks + 1))
        [ $((looks % poll)) -ne 0 ] || trim
    done
}

runnable() { # whether $1 can be run; else why
    why='No such file or directory'
    [ -e "$1" ] || return 1
    why='Permission denied'
    [ -f "$1" ] && [ -x "$1" ]
}

program() { # the same of a program by its name alone, which PATH leads to
    case $1 in */*) runnable "$1" && return 0 || return 1 ;; esac
    rest=$PATH: missing='No such file or directory'
    while [ -n "$rest" ]; do
        place=${rest%%:*} rest=${rest#*:}
        runnable "${place:-.}/$1" && return 0
        [ "$why" = 'Permission denied' ] && missing=$why
    done
    why=$missing
    return 1
}

start_command() {
    # shellcheck disable=SC2094
    printf '%s\n' "$$ $mine $epoch $run" >"$lock" && : >"$run/begun" && : >"$run/output" ||
        fail "$run cannot be written"
    now
    deadline=$((now + limit))
    guard </dev/null >/dev/null 9>&- &
    guard=$!
    # In the foreground: a shell makes what it starts in the background deaf to INT and QUIT. Exec, so that nothing of
    # the shell's own is meant by the name.
    (
        umask "$umask_before"
        environment
        exec "$@"
    ) </dev/null >>"$run/output" 2>&1 9>&-
    status=$?
    kill -s KILL $guard
    wait $guard
    now
    if [ -e "$run/end" ]; then
        word=ended
    elif [ "$now" -ge "$deadline" ]; then
        word=timeout
    elif [ $status -gt 128 ] && [ $status -le 192 ]; then
        word="signal $((status - 128))"
    else
        word="exit $status"
    fi
    case $word in ended | timeout) end_group "$$" 0 ;; esac
    trim
    leave "$word"
    case $word in
        ended | timeout)
            members "$$" 0
            [ -z "$found" ] || tell # the next one sees to them
            ;;
    esac
    : >"$lock"
    tell
}

forget() { # what ended a week ago
    # shellcheck disable=SC2016
    find "$base/runs" -name exit -mtime +7 -exec sh -c 'for end; do rm -rf "${end%/exit}"; done' sh {} + 9>&-
}

say begin
trap : HUP INT TERM # caught, not ignored: the command must not find them ignored
[ -r /proc/self/stat ] || fail "this host has no /proc: it is no Linux"
command -v flock >/dev/null || fail "this host has no flock (package util-linux)"
look "$$"
mine=$start
[ "$group" = "$$" ] || fail "the shell that sshd starts leads no process group of its own"
mkdir -p "$run" "$base/locks" && (: >>"$lock") || fail "$run cannot be made"
[ $action = run ] || : >"$run/end"
exec 9>>"$lock"
acquire
ended && tell
orphans
case $action in
    end)
        [ "$owner" = "$run" ] && [ -n "$left" ] && end_group "$left" 0
        leave ended
        tell
        ;;
esac
[ -z "$left" ] || end_group "$left" 0 || {
    leave "error processes of the command before it cannot be ended (process group $left)"
    tell
}
if [ -e "$run/end" ]; then
    leave ended
elif [ -e "$run/begun" ]; then
    leave killed
elif [ "$limit" -le 0 ]; then
    leave timeout
else
    forget
    program "$1" || leave "error $why"
fi
ended && tell
epoch
start_command "$@"
