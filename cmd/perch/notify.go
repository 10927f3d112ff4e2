package main

import (
	"fmt"
	"io"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notifier tells systemd how far the server is (sd_notify(3)), where systemd
// has asked for it; else it does nothing.
type notifier struct{ stderr io.Writer }

func (n notifier) send(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		fmt.Fprintln(n.stderr, "perch: warning: the service manager is not told: "+err.Error())
	}
}

func (n notifier) ready(status string) { n.send(daemon.SdNotifyReady + "\nSTATUS=" + status) }

// reloading is sent before a reload, ready after it: both of Type=notify and of
// Type=notify-reload, which needs the time.
func (n notifier) reloading() {
	n.send(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
}

// stopping asks for as long as the drain may take, whatever TimeoutStopSec is.
func (n notifier) stopping(within time.Duration) {
	n.send(fmt.Sprintf("%s\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=%d", daemon.SdNotifyStopping, within.Microseconds()))
}

// watch pings the watchdog of systemd until done is closed, where there is one.
// It pings only while every loop of the server gets round to its turn: a server
// of which a part stands still is to be started again. Between two pings systemd
// waits for WatchdogSec; a quarter of it leaves room for one that is late.
func (n notifier) watch(lag func() time.Duration, done <-chan struct{}) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		fmt.Fprintln(n.stderr, "perch: warning: no watchdog: "+err.Error())
	}
	if err != nil || every <= 0 {
		return
	}
	t := time.NewTicker(max(every/4, time.Millisecond))
	defer t.Stop()
	stuck := false
	for {
		select {
		case <-done:
			return
		case <-t.C:
		}
		late := lag()
		if late < every/2 {
			n.send(daemon.SdNotifyWatchdog)
		} else if !stuck {
			fmt.Fprintf(n.stderr, "perch: a loop has stood still for %s: the watchdog is not told\n", late.Round(time.Millisecond))
		}
		stuck = late >= every/2
	}
}
