package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"perch/internal/doctor"
)

// doctorRun runs the command in this process.
func doctorRun(t *testing.T, env []string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(append([]string{"doctor"}, args...), env, &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

func TestDoctor(t *testing.T) {
	tests := []struct {
		name   string
		env    []string
		args   []string
		code   int
		stdout string // a part of it
		stderr string // a part of it; empty: nothing
	}{
		{"few sessions", nil, []string{"--connections", "10"}, 0, "this machine can hold 10 sessions", ""},
		{"of the configuration", []string{"PERCH_LIMITS_CONNECTIONS=11"}, nil, 0, "this machine can hold 11 sessions", ""},
		{"loops of the configuration", []string{"PERCH_LOOPS=7"}, []string{"-n", "10"}, 0, "10 sessions on 7 loops", ""},
		{"too many", nil, []string{"--connections", "100000000"}, 1,
			"this machine can't hold 100000000 sessions as it is\n", "perch: 100000000 sessions: not with these: "},
		{"a generator", nil, []string{"-n", "10", "--generator", "--sources", "2"}, 0, "this machine can open 10 sessions", ""},
		{"a generator of too many", nil, []string{"-n", "900000", "--generator"}, 1, "net.ipv4.ip_local_port_range", "not with these: "},
		{"a process", nil, []string{"-n", "10", "--pid", strconv.Itoa(os.Getpid())}, 0, "can hold 10", ""},
		{"no process", nil, []string{"-n", "10", "--pid", "999999999"}, 1, "", "perch: --pid: there is no process 999999999\n"},
		{"no number", nil, nil, 2, "", "perch: --connections is missing: how many sessions the machine should hold\nSee 'perch doctor --help'.\n"},
		{"less than none", nil, []string{"-n", "-5"}, 2, "", "perch: --connections: -5 must be between 1 and 100000000\n"},
		{"no addresses", nil, []string{"-n", "5", "--generator", "--sources", "0"}, 2, "", "--sources: 0 must be at least 1"},
		{"addresses of a server", nil, []string{"-n", "5", "--sources", "2"}, 2, "", "add --generator"},
		{"an argument", nil, []string{"10"}, 2, "", "unexpected argument"},
		{"no directory", nil, []string{"-n", "5", "--write", ""}, 2, "", "--write: the directory is missing"},
		{"a directory that is not there", nil, []string{"-n", "5", "--write", "/nowhere/at/all"}, 1, "can hold 5", "perch: doctor: write: "},
		{"a file that is not there", nil, []string{"-n", "5", "--config", "none.yaml"}, 1, "", "none.yaml: can't be read"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := doctorRun(t, tt.env, tt.args...)
			if got.code != tt.code || !strings.Contains(got.stdout, tt.stdout) || !strings.Contains(got.stderr, tt.stderr) ||
				tt.stderr == "" && got.stderr != "" || tt.stdout == "" && got.stdout != "" {
				t.Errorf("got %d\n%s\n%s", got.code, got.stdout, got.stderr)
			}
		})
	}
}

func TestDoctorJSON(t *testing.T) {
	for sessions, want := range map[int]int{10: 0, 100_000_000: 1} {
		dir := t.TempDir()
		got := doctorRun(t, nil, "--json", "--connections", strconv.Itoa(sessions), "--write", dir)
		var report doctor.Report
		if err := json.Unmarshal([]byte(got.stdout), &report); err != nil {
			t.Fatalf("%v in %s", err, got.stdout)
		}
		if got.code != want || (report.Status == doctor.Fail) != (want == 1) || report.Connections != sessions ||
			len(report.Findings) < 16 || len(report.Memory) == 0 {
			t.Errorf("%d sessions: %d, %s, %d findings", sessions, got.code, report.Status, len(report.Findings))
		}
		// What was written is told beside the JSON.
		if !strings.Contains(got.stderr, filepath.Join(dir, doctor.SysctlFile)) {
			t.Errorf("stderr: %s", got.stderr)
		}
	}
}

func TestDoctorWrites(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		got := doctorRun(t, nil, "-n", "100000000", "--write", dir)
		if got.code != 1 || !strings.Contains(got.stdout, "load it with: sysctl -p "+dir) {
			t.Fatalf("got %+v", got)
		}
		for _, name := range []string{doctor.SysctlFile, doctor.LimitsFile} {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil || !strings.Contains(string(text), "100000000 sessions") {
				t.Errorf("%s: %v\n%s", name, err, text)
			}
		}
	}
}

// TestDoctorReadsTheQueue: of a server that runs, the length of the accept queue
// is the one in force, whatever the sysctl says by now.
func TestDoctorReadsTheQueue(t *testing.T) {
	p := startServe(t, t.TempDir(), "--insecure", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	public := after(t, p.greet, "Perch serves http://")
	queue := func(args ...string) string {
		t.Helper()
		got := doctorRun(t, nil, append([]string{"-n", "10", "--json", "--listen", public}, args...)...)
		var report doctor.Report
		if err := json.Unmarshal([]byte(got.stdout), &report); err != nil {
			t.Fatalf("%v in %s", err, got.stdout)
		}
		for _, f := range report.Findings {
			if f.Name == "accept queue" {
				return f.Have
			}
		}
		t.Fatal("no accept queue")
		return ""
	}
	for _, args := range [][]string{nil, {"--pid", strconv.Itoa(p.cmd.Process.Pid)}} {
		if have := queue(args...); !regexp.MustCompile(`^in force: \d+ listeners x \d+, 0 waiting$`).MatchString(have) {
			t.Errorf("%q: %s", args, have)
		}
	}
	p.drain(t)
	if have := queue(); !strings.Contains(have, "nobody listens on") {
		t.Errorf("when it has ended: %s", have)
	}
}

var limitPattern = regexp.MustCompile(`LimitNOFILE=(\d+)`)

// TestDoctorKnowsTheServer: the descriptors that the doctor asks for are those
// with which the server starts, and it does not with a few less.
func TestDoctorKnowsTheServer(t *testing.T) {
	// The doctor has to see a limit that is too low to say the right one.
	out, err := exec.Command("sh", "-c", `ulimit -n 200; exec "$0" doctor -n 1500`, binary).Output()
	m := limitPattern.FindSubmatch(out)
	if err == nil || m == nil {
		t.Fatalf("%v: %s", err, out)
	}
	want, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	serve := func(limit int) *exec.Cmd {
		cmd := exec.Command("sh", "-c", fmt.Sprintf(
			`ulimit -n %d; exec "$0" serve --insecure --listen 127.0.0.1:0 --admin 127.0.0.1:0`, limit), binary)
		cmd.Dir, cmd.Env = t.TempDir(), environ("PERCH_LIMITS_CONNECTIONS=1500")
		return cmd
	}
	start(t, serve(want)).drain(t)

	few := serve(want - 40)
	text, err := few.CombinedOutput()
	if err == nil || !strings.Contains(string(text), "1500 connections need a descriptor limit of") {
		t.Errorf("with less than %d: %v: %s", want, err, text)
	}
	// And it says so of a server with that limit, but not with the right one.
	for limit, code := range map[int]int{want: 0, want - 40: 1} {
		cmd := exec.Command("sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$0" doctor -n 1500`, limit), binary)
		cmd.Env = environ()
		if text, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != code {
			t.Errorf("limit %d: %d\n%s", limit, cmd.ProcessState.ExitCode(), text)
		}
	}
}
