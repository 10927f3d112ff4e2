package deploy

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/nats-io/nats-server/v2/server"
	"sigs.k8s.io/yaml"
)

// composeFile is read with .env beside it.
var composeFile = filepath.Join(root, "deploy", "compose", "docker-compose.yaml")

// compose loads the file as docker compose would, and checks it against the
// specification.
func compose(env environment) (*types.Project, error) {
	o, err := cli.NewProjectOptions([]string{composeFile}, cli.WithEnv(env.list()))
	if err != nil {
		return nil, err
	}
	return o.LoadProject(context.Background())
}

// composeEnv is what the line at the head of the file puts into .env.
func composeEnv(t *testing.T) environment {
	t.Helper()
	names := regexp.MustCompile(`for name in ([A-Z_ ]+); do`).FindStringSubmatch(read(t, composeFile))
	if names == nil {
		t.Fatal("the head of the file makes no .env")
	}
	env := environment{}
	for _, name := range strings.Fields(names[1]) {
		env[name] = secret(name)
	}
	return env
}

func project(t *testing.T) *types.Project {
	t.Helper()
	p, err := compose(composeEnv(t))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serviceEnv is the environment of a container.
func serviceEnv(t *testing.T, s types.ServiceConfig) environment {
	t.Helper()
	out := environment{}
	for k, v := range s.Environment {
		if v == nil {
			t.Errorf("%s: %s comes from nowhere", s.Name, k)
			continue
		}
		out[k] = *v
	}
	return out
}

// brought is the file on this machine that a container has under a name.
func brought(t *testing.T, p *types.Project, s types.ServiceConfig, name string) string {
	t.Helper()
	for _, c := range s.Configs {
		if c.Target == name {
			return p.Configs[c.Source].File
		}
	}
	t.Fatalf("%s: nothing brings %s", s.Name, name)
	return ""
}

// named are the services whose name begins with so.
func named(t *testing.T, p *types.Project, prefix string) []types.ServiceConfig {
	t.Helper()
	var out []types.ServiceConfig
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		if strings.HasPrefix(name, prefix) {
			out = append(out, p.Services[name])
		}
	}
	if len(out) != 3 {
		t.Fatalf("%d services are %s", len(out), prefix)
	}
	return out
}

// TestComposeNeedsSecrets: no service starts with an empty password.
func TestComposeNeedsSecrets(t *testing.T) {
	for name := range composeEnv(t) {
		env := composeEnv(t)
		delete(env, name)
		if _, err := compose(env); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

// TestCompose: services, files and servers fit one another.
func TestCompose(t *testing.T) {
	p := project(t)
	for name, s := range p.Services {
		if !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) || s.Privileged {
			t.Errorf("%s may do more than it needs", name)
		}
		for _, port := range s.Ports {
			if name != "balancer" && port.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to everybody", name, port.Published)
			}
		}
	}
	for _, c := range p.Configs {
		if _, err := os.Stat(c.File); err != nil {
			t.Error(err)
		}
	}
	nats, nodes := named(t, p, "nats"), named(t, p, "perch")
	var servers []string
	for _, s := range nats {
		o := natsOptions(t, read(t, brought(t, p, s, s.Command[len(s.Command)-1])), serviceEnv(t, s))
		servers = append(servers, "nats://"+s.Name+":4222")
		if s.Image != natsImage(t) {
			t.Errorf("the image is %s, Perch is built with %s", s.Image, natsImage(t))
		}
		if o.ServerName != s.Name {
			t.Errorf("%s calls itself %s", s.Name, o.ServerName)
		}
		var routes []string
		for _, r := range o.Routes {
			routes = append(routes, r.Hostname())
		}
		if !slices.Equal(routes, []string{"nats1", "nats2", "nats3"}) || o.Routes[0].Port() != "6222" || o.Cluster.Port != 6222 || o.Port != 4222 {
			t.Errorf("%s: port %d, routes to %v by %d", s.Name, o.Port, routes, o.Cluster.Port)
		}
		if s.StopSignal != "SIGUSR2" || time.Duration(*s.StopGracePeriod) <= o.LameDuckDuration {
			t.Errorf("%s has %s to send its clients away over %s", s.Name, s.StopGracePeriod, o.LameDuckDuration)
		}
		mounts(t, s, o.StoreDir)
	}
	data := imageEnv(t)["PERCH_DATA_DIR"]
	for _, s := range nodes {
		env := serviceEnv(t, s)
		config := settings{}
		if err := yaml.Unmarshal([]byte(read(t, brought(t, p, s, env["PERCH_CONFIG"]))), &config); err != nil {
			t.Fatal(err)
		}
		if config.NATS.URL != strings.Join(servers, ",") || config.NATS.Replicas != len(servers) {
			t.Errorf("%s asks %s for %d replicas", s.Name, config.NATS.URL, config.NATS.Replicas)
		}
		if env["PERCH_NATS_NAME"] != s.Name {
			t.Errorf("%s calls itself %s", s.Name, env["PERCH_NATS_NAME"])
		}
		if _, all := config.drain(t); time.Duration(*s.StopGracePeriod) <= all {
			t.Errorf("%s has %s to end, its drain takes up to %s", s.Name, s.StopGracePeriod, all)
		}
		if len(s.Ports) != 1 || int(s.Ports[0].Target) != port(t, config.Admin) {
			t.Errorf("%s does not publish the admin port alone: %v", s.Name, s.Ports)
		}
		if path := s.Build.Context; absolute(t, root) != path {
			t.Errorf("%s is built in %s", s.Name, path)
		}
		mounts(t, s, data)
	}
	if !strings.Contains(read(t, root, "Dockerfile"), "\nHEALTHCHECK ") {
		t.Error("the image has no health check, and no service has one of its own")
	}
}

// mounts: a volume of the service's own is there.
func mounts(t *testing.T, s types.ServiceConfig, dir string) {
	t.Helper()
	if len(s.Volumes) != 1 || s.Volumes[0].Target != dir || s.Volumes[0].Source != s.Name {
		t.Errorf("%s: volumes %v, want its own on %s", s.Name, s.Volumes, dir)
	}
}

// TestComposeBalancer: the balancer knows each node by its name and ports, and
// asks what they answer.
func TestComposeBalancer(t *testing.T) {
	p := project(t)
	text := deployed(t, "compose", "haproxy.cfg")
	var config settings
	if err := yaml.Unmarshal([]byte(deployed(t, "compose", "perch.yaml")), &config); err != nil {
		t.Fatal(err)
	}
	_, public := split(t, imageEnv(t)["PERCH_LISTEN"])
	_, admin := split(t, config.Admin)
	for _, s := range named(t, p, "perch") {
		if want := regexp.MustCompile(`\n  server ` + s.Name + ` ` + s.Name + `:` + strconv.Itoa(public) + `\n`); !want.MatchString(text) {
			t.Errorf("the balancer does not know %s", s.Name)
		}
	}
	for _, want := range []string{" check port " + strconv.Itoa(admin) + " ", "option httpchk GET /readyz\n", " send-proxy-v2 ", "\n  bind :" + strconv.Itoa(int(p.Services["balancer"].Ports[0].Target)) + "\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the balancer's configuration misses %q", want)
		}
	}
	if haproxy, err := exec.LookPath("haproxy"); err != nil {
		t.Log("no haproxy here: its configuration is not checked by it")
	} else if out, err := exec.Command(haproxy, "-c", "-f", filepath.Join(root, "deploy", "compose", "haproxy.cfg")).CombinedOutput(); err != nil {
		t.Errorf("haproxy -c: %v\n%s", err, out)
	}
}

// TestComposeRuns starts what compose starts, on this machine: three servers of
// NATS and three nodes, each with the environment and the files of its container.
func TestComposeRuns(t *testing.T) {
	p := project(t)
	servers := named(t, p, "nats")
	var options []*server.Options
	for _, s := range servers {
		options = append(options, natsOptions(t, read(t, brought(t, p, s, s.Command[len(s.Command)-1])), serviceEnv(t, s)))
	}
	all := natsServers(t, options...)
	check := servers[0].HealthCheck.Test
	path := strings.TrimPrefix(check[len(check)-1], "http://127.0.0.1:8222")
	if !strings.HasPrefix(path, "/") {
		t.Fatalf("the health check of NATS asks %s", check)
	}
	healthy(t, all, path)
	for _, s := range named(t, p, "perch") {
		env := imageEnv(t).with(serviceEnv(t, s))
		env["PERCH_CONFIG"] = write(t, t.TempDir(), "perch.yaml", read(t, brought(t, p, s, env["PERCH_CONFIG"])))
		checkConfig(t, env)
		env["PERCH_NATS_URL"] = urls(all)
		n := serve(t, env)
		n.answers(t, "/readyz")
		connected(t, all, s.Name, "PERCH")
		if out, err := run(t, n.env, "health"); err != nil || out != "ready\n" {
			t.Errorf("the health check of %s: %v\n%s", s.Name, err, out)
		}
		_, js := jetStream(t, urls(all), natsUser(env))
		store(t, js, len(servers))
	}
}
