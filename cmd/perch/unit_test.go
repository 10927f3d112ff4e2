package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"perch"
	"perch/internal/testkit"
)

// TestUnit: the systemd unit says what the server does: it notifies, its
// watchdog is pinged, SIGHUP reloads, and the drain has its time.
func TestUnit(t *testing.T) {
	root, err := testkit.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(root, "deploy", "systemd", "perch.service"))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string][]string{}
	for line := range strings.Lines(string(data)) {
		if key, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			values[key] = append(values[key], v)
		}
	}
	for key, want := range map[string]string{
		"Type": "notify", "KillSignal": "SIGTERM", "Restart": "on-failure", "DynamicUser": "yes", "ProtectSystem": "strict", "NoNewPrivileges": "yes",
	} {
		if got := strings.Join(values[key], " "); got != want {
			t.Errorf("%s=%s, want %s", key, got, want)
		}
	}
	seconds := func(key string) time.Duration {
		d, err := time.ParseDuration(strings.Join(values[key], " ") + "s")
		if err != nil {
			t.Errorf("%s: %v", key, err)
		}
		return d
	}
	o := perch.DefaultOptions().Drain
	if got, least := seconds("TimeoutStopSec"), o.Delay+o.Budget+stopGrace; got < least {
		t.Errorf("TimeoutStopSec is %s, the drain and the end take %s", got, least)
	}
	// A loop's turn, ten times a second, against a quarter of it.
	if got := seconds("WatchdogSec"); got < 10*time.Second {
		t.Errorf("WatchdogSec is %s: a busy machine would end the process", got)
	}
	reload := values["ExecReload"]
	if len(reload) == 0 || reload[len(reload)-1] != "/bin/kill -HUP $MAINPID" {
		t.Errorf("ExecReload=%v", reload)
	}
	for _, lines := range [][]string{values["ExecStartPre"], reload} {
		// The configuration is copied, then checked.
		if len(lines) < 2 || !strings.Contains(lines[0], "%t/perch/perch.yaml") || lines[1] != "/usr/local/bin/perch check" {
			t.Errorf("before: %v", lines)
		}
	}

	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("no systemd-analyze here: the unit is not verified by it")
		return
	}
	unit := filepath.Join(t.TempDir(), "perch.service")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(data), "/usr/local/bin/perch", binary)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
