package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// imageUser is whom the image runs as.
const imageUser = 65532

// TestImage runs what the image holds, the static binary and an empty data
// directory, in a root directory of its own as the image's user, with the
// image's environment. The build line and the environment are the Dockerfile's.
func TestImage(t *testing.T) {
	data, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	dockerfile := string(data)
	for _, want := range []string{"\nFROM scratch\n", "\nUSER 65532:65532\n", "--chown=65532:65532 /out/data /data\n", ` CMD ["/perch", "health"]`, "\nENTRYPOINT [\"/perch\"]\nCMD [\"serve\"]\n"} {
		if !strings.Contains(dockerfile, want) {
			t.Errorf("the Dockerfile misses %q", want)
		}
	}
	build := regexp.MustCompile(`RUN CGO_ENABLED=0 go build (\S+) -ldflags "([^"]+)" -o /out/perch \./cmd/perch\n`).FindStringSubmatch(dockerfile)
	env := regexp.MustCompile(`\nENV (.+)\n`).FindStringSubmatch(dockerfile)
	if build == nil || env == nil {
		t.Fatal("the Dockerfile has no build line or no environment")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root to change its root directory")
	}

	jail := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", build[1], "-ldflags", strings.ReplaceAll(build[2], "${VERSION}", "v1.2.3"),
		"-o", filepath.Join(jail, "perch"), ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	dataDir := filepath.Join(jail, "data")
	if err := os.Mkdir(dataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dataDir, imageUser, imageUser); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(jail, 0o755); err != nil {
		t.Fatal(err)
	}
	inside := func(args ...string) *exec.Cmd {
		cmd := exec.Command("/perch", args...)
		cmd.Dir, cmd.Env = "/", strings.Fields(env[1])
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Chroot: jail, Credential: &syscall.Credential{Uid: imageUser, Gid: imageUser},
		}
		return cmd
	}

	if out, err := inside("version").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "perch v1.2.3 (") {
		t.Errorf("version: %s %v", out, err)
	}
	if out, err := inside("check").CombinedOutput(); err != nil || string(out) != "ok\n" {
		t.Errorf("check: %s %v", out, err)
	}
	// Other ports than the image's: here they may be someone else's.
	p := start(t, inside("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
		"http://"+after(t, p.greet, "Perch serves http://")+"/.well-known/jwks.json", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("keys: %s", resp.Status)
	}
	admin := strings.TrimSuffix(after(t, p.greet, "and its backends on http://"), ".")
	if out, err := inside("health", "--admin", admin).CombinedOutput(); err != nil || string(out) != "ready\n" {
		t.Errorf("health: %s %v", out, err)
	}
	p.drain(t)
	for _, name := range []string{"signing-key.pem", apiKeyFile} {
		info, err := os.Stat(filepath.Join(dataDir, name))
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %o", name, info.Mode().Perm())
		}
	}
}
