package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Server is a server that the bench has started for itself.
type Server struct {
	Name string
	// Addr is where its sockets go; Admin, of Perch alone, its admin URL.
	Addr, Admin string
	Secret      string
	APIKey      string

	cmd    *exec.Cmd
	dir    string
	out    *lastLines
	exited chan struct{}
}

// The names of the servers of a comparison beside the folders of bench/peers.
const (
	PerchName = "perch"
	floorName = "floor"
)

const (
	startTimeout = 20 * time.Second
	stopTimeout  = 10 * time.Second
)

// StartPerch starts the Perch binary at path on free ports of 127.0.0.1, with
// a data directory that goes with it. env are further settings, as
// PERCH_KEY=value.
func StartPerch(ctx context.Context, path string, env ...string) (*Server, error) {
	s := &Server{Name: PerchName, Secret: "bench-secret-of-a-server-on-loopback", APIKey: "bench-api-key-of-a-server-on-loopback"}
	var err error
	if s.Addr, err = freeAddr(); err != nil {
		return nil, err
	}
	admin, err := freeAddr()
	if err != nil {
		return nil, err
	}
	s.Admin = "http://" + admin
	if s.dir, err = os.MkdirTemp("", "perch-bench-"); err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	env = append([]string{
		"PERCH_LISTEN=" + s.Addr, "PERCH_ADMIN=" + admin, "PERCH_DATA_DIR=" + filepath.Join(s.dir, "data"),
		"PERCH_AUTH_HMAC_SECRET=" + s.Secret, "PERCH_API_KEY=" + s.APIKey, "PERCH_ECHO=true",
		"PERCH_TOPICS_DEFAULT_ALLOW_SUBSCRIBE_FOR_CLIENT=true", "PERCH_TOPICS_DEFAULT_ALLOW_PUBLISH_FOR_CLIENT=true",
	}, env...)
	if err := s.start(path, []string{"serve"}, env); err != nil {
		return nil, err
	}
	return s, s.wait(ctx)
}

// StartPeer starts a server of bench/peers, built at path.
func StartPeer(ctx context.Context, name, path string, args ...string) (*Server, error) {
	s := &Server{Name: name}
	var err error
	if s.Addr, err = freeAddr(); err != nil {
		return nil, err
	}
	if err := s.start(path, append([]string{"-listen", s.Addr}, args...), nil); err != nil {
		return nil, err
	}
	return s, s.wait(ctx)
}

// BuildPeers builds the servers of bench/peers with the Go toolchain into dir.
// module is the directory of Perch's go.mod.
func BuildPeers(ctx context.Context, module, dir string, names []string) error {
	args := []string{"build", "-buildvcs=false", "-o", dir + string(filepath.Separator)}
	for _, name := range names {
		args = append(args, "./"+name)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = filepath.Join(module, "bench", "peers")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("bench: building the peers: %w\n%s", err, out)
	}
	return nil
}

// FindModule is the directory of Perch's go.mod, at dir or above it.
func FindModule(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("bench: %w", err)
	}
	for {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), "module perch\n") {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("bench: the peers are built from a clone of Perch: run this inside one")
		}
		dir = up
	}
}

func (s *Server) start(path string, args, env []string) error {
	s.out, s.exited = &lastLines{}, make(chan struct{})
	s.cmd = exec.Command(path, args...)
	for _, kv := range os.Environ() {
		// The servers run as they ship.
		if name, _, _ := strings.Cut(kv, "="); name != "GOGC" && name != "GOMEMLIMIT" && name != "GOMAXPROCS" &&
			name != "GODEBUG" && !strings.HasPrefix(name, "PERCH_") {
			s.cmd.Env = append(s.cmd.Env, kv)
		}
	}
	s.cmd.Env = append(s.cmd.Env, env...)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	s.cmd.SysProcAttr = apart()
	started := make(chan error)
	go func() {
		// Its parent is the thread, which has to last as long as it does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait() // how it ended shows in its output
			close(s.exited)
		}
	}()
	if err := <-started; err != nil {
		s.remove()
		return fmt.Errorf("bench: starting %s: %w", s.Name, err)
	}
	return nil
}

// apart makes a process that an interrupt from the terminal does not reach, so
// that the bench ends it when it has read what it wants to, and that does not
// outlive the thread that starts it, however the bench ends.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// wait returns when the server takes connections, and is ready.
func (s *Server) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if s.up() {
			return nil
		}
		select {
		case <-s.exited:
			s.remove()
			return fmt.Errorf("bench: %s ended at once:\n%s", s.Name, s.out)
		case <-ctx.Done():
			s.Stop()
			return fmt.Errorf("bench: %s did not become ready: %w\n%s", s.Name, ctx.Err(), s.out)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *Server) up() bool {
	if s.Admin == "" {
		c, err := net.DialTimeout("tcp", s.Addr, time.Second)
		if err != nil {
			return false
		}
		c.Close()
		return true
	}
	resp, err := metricsClient.Get(s.Admin + "/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// PID is that of its process.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Stop ends it, and removes what it wrote.
func (s *Server) Stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-s.exited:
	case <-time.After(stopTimeout):
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
	s.remove()
}

func (s *Server) remove() {
	if s.dir != "" {
		os.RemoveAll(s.dir)
	}
}

// Options fill in what a load of this server needs to know of it.
func (s *Server) Options(o Options) Options {
	o.Name, o.PID, o.Admin, o.APIKey = s.Name, s.PID(), s.Admin, s.APIKey
	path := "/echo"
	switch {
	case s.Admin != "" && o.Scenario != Echo:
		path, o.Secret = "/connection/websocket", s.Secret
	case o.Scenario == Fanout:
		path = "/topic"
	}
	o.URL = "ws://" + s.Addr + path
	return o
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("bench: a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// lastLines keeps the end of what a server writes.
type lastLines struct {
	mu sync.Mutex
	b  []byte
}

func (l *lastLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b = append(l.b, p...); len(l.b) > 8<<10 {
		l.b = append(l.b[:0], l.b[len(l.b)-4<<10:]...)
	}
	return len(p), nil
}

func (l *lastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}
