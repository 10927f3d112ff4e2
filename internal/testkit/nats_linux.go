package testkit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// natsServerPackage is the main package of the NATS server, of the version that
// go.mod names.
const natsServerPackage = "github.com/nats-io/nats-server/v2"

// NATS is a cluster of NATS servers with JetStream, each a process of its own on
// loopback.
type NATS struct {
	Servers []*NATSServer
	dir     string
	client  *http.Client
}

// NATSServer is one of them. It keeps its ports and its files when it is started
// again. Its methods are safe from any goroutine, save that only one changes it.
type NATSServer struct {
	Name    string
	Addr    string // of its clients
	monitor string
	bin     string
	config  string

	mu      sync.Mutex
	process *Process
	stopped bool
}

// StartNATS starts n servers and waits until they can take streams. module is the
// directory of the module whose NATS version is built.
func StartNATS(ctx context.Context, module string, n int) (*NATS, error) {
	bin, err := Executable(ctx, module, natsServerPackage)
	if err != nil {
		return nil, err
	}
	c := &NATS{client: &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
	if c.dir, err = os.MkdirTemp("", "perch-nats-"); err != nil {
		return nil, err
	}
	var routes []string
	for i := range n {
		s := &NATSServer{Name: fmt.Sprint("n", i), bin: bin, config: filepath.Join(c.dir, fmt.Sprintf("n%d.conf", i))}
		for _, to := range []*string{&s.Addr, &s.monitor} {
			if *to, err = FreeAddr(); err != nil {
				return nil, errors.Join(err, c.Close())
			}
		}
		route, err := FreeAddr()
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		routes = append(routes, route)
		c.Servers = append(c.Servers, s)
	}
	for i, s := range c.Servers {
		// Addresses that clients don't know of: they come through a Proxy, or not.
		text := fmt.Sprintf(`server_name: %s
listen: %q
http: %q
max_payload: 8MB
jetstream { store_dir: %q, max_file_store: 4GB }
`, s.Name, s.Addr, s.monitor, filepath.Join(c.dir, s.Name))
		if n > 1 {
			text += fmt.Sprintf("cluster { name: test, listen: %q, no_advertise: true, routes: [nats://%s] }\n", routes[i], strings.Join(routes, ", nats://"))
		}
		if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		if err := s.Start(); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	if err := c.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// URL names all servers.
func (c *NATS) URL() string {
	var all []string
	for _, s := range c.Servers {
		all = append(all, "nats://"+s.Addr)
	}
	return strings.Join(all, ",")
}

// Close kills all servers and deletes their files.
func (c *NATS) Close() error {
	for _, s := range c.Servers {
		s.Kill()
	}
	return os.RemoveAll(c.dir)
}

// Restore starts those that don't run, lets those go on that are stopped, and
// waits until all are there.
func (c *NATS) Restore(ctx context.Context) error {
	for _, s := range c.Servers {
		if err := s.Continue(); err != nil {
			return err
		}
		if !s.Running() {
			if err := s.Start(); err != nil {
				return err
			}
		}
	}
	return c.WaitReady(ctx)
}

// WaitReady waits until every server is healthy and knows the leader of the
// cluster.
func (c *NATS) WaitReady(ctx context.Context) error {
	for _, s := range c.Servers {
		for {
			err := c.healthy(ctx, s)
			if err == nil {
				break
			}
			if err := s.get().pause(ctx); err != nil {
				return fmt.Errorf("testkit: nats server %s: %w\n%s", s.Name, err, s.get().Output())
			}
		}
	}
	return nil
}

func (c *NATS) healthy(ctx context.Context, s *NATSServer) error {
	if err := c.ask(ctx, s, "/healthz", &struct{}{}); err != nil {
		return err
	}
	if len(c.Servers) == 1 {
		return nil
	}
	_, err := c.MetaLeader(ctx)
	return err
}

func (c *NATS) ask(ctx context.Context, s *NATSServer, path string, to any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.monitor+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("testkit: %s of %s: %s", path, s.Name, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(to)
}

type jsz struct {
	Meta struct {
		Leader string `json:"leader"`
	} `json:"meta_cluster"`
	Accounts []struct {
		Streams []struct {
			Name    string `json:"name"`
			Cluster struct {
				Leader   string `json:"leader"`
				Replicas []struct {
					Name    string `json:"name"`
					Current bool   `json:"current"`
					Offline bool   `json:"offline"`
				} `json:"replicas"`
			} `json:"cluster"`
		} `json:"stream_detail"`
	} `json:"account_details"`
}

var errNoLeader = errors.New("testkit: no server knows the leader")

// MetaLeader is the server that leads the cluster.
func (c *NATS) MetaLeader(ctx context.Context) (*NATSServer, error) {
	for _, s := range c.Servers {
		var a jsz
		if s.answers() && c.ask(ctx, s, "/jsz", &a) == nil && a.Meta.Leader != "" {
			return c.named(a.Meta.Leader)
		}
	}
	return nil, errNoLeader
}

// Leader is the server that leads a stream, as those that run now say.
func (c *NATS) Leader(ctx context.Context, stream string) (*NATSServer, error) {
	for _, s := range c.Servers {
		var a jsz
		if !s.answers() || c.ask(ctx, s, "/jsz?accounts=true&streams=true&config=true", &a) != nil {
			continue
		}
		for _, account := range a.Accounts {
			for _, st := range account.Streams {
				if st.Name == stream && st.Cluster.Leader != "" {
					return c.named(st.Cluster.Leader)
				}
			}
		}
	}
	return nil, errNoLeader
}

// Follower is a server that does not lead a stream.
func (c *NATS) Follower(ctx context.Context, stream string) (*NATSServer, error) {
	leader, err := c.Leader(ctx, stream)
	if err != nil {
		return nil, err
	}
	for _, s := range c.Servers {
		if s != leader && s.answers() {
			return s, nil
		}
	}
	return nil, errNoLeader
}

func (c *NATS) named(name string) (*NATSServer, error) {
	for _, s := range c.Servers {
		if s.Name == name {
			return s, nil
		}
	}
	return nil, fmt.Errorf("testkit: no nats server %q", name)
}

func (s *NATSServer) get() *Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// Start starts it, for the first time or again; it does not wait.
func (s *NATSServer) Start() error {
	p, err := StartProcess(s.bin, []string{"-c", s.config}, nil, 0)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process, s.stopped = p, false
	return nil
}

// Running tells whether its process is there.
func (s *NATSServer) Running() bool {
	p := s.get()
	if p == nil {
		return false
	}
	select {
	case <-p.Exited():
		return false
	default:
		return true
	}
}

func (s *NATSServer) answers() bool {
	s.mu.Lock()
	stopped := s.stopped
	s.mu.Unlock()
	return !stopped && s.Running()
}

// Kill ends it at once: SIGKILL.
func (s *NATSServer) Kill() {
	if p := s.get(); p != nil {
		_ = p.Signal(syscall.SIGKILL)
		<-p.Exited()
	}
}

// Stop lets it stand still, SIGSTOP, and Continue lets it go on.
func (s *NATSServer) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	return s.process.Signal(syscall.SIGSTOP)
}

// Continue does nothing where it is not stopped.
func (s *NATSServer) Continue() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		return nil
	}
	s.stopped = false
	return s.process.Signal(syscall.SIGCONT)
}

// Output is the end of what it has said.
func (s *NATSServer) Output() string { return s.get().Output() }
