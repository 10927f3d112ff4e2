package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// natsOptions reads a configuration of NATS as its server would, in an
// environment.
func natsOptions(t *testing.T, text string, env environment) *server.Options {
	t.Helper()
	for k, v := range env {
		t.Setenv(k, v)
	}
	o, err := server.ProcessConfigFile(write(t, t.TempDir(), "nats.conf", text))
	if err != nil {
		t.Fatalf("nats-server does not take the configuration: %v", err)
	}
	return o
}

// natsServers starts NATS servers by their configurations. What differs are
// addresses, and where their files are.
func natsServers(t *testing.T, all ...*server.Options) []*server.Server {
	t.Helper()
	var routes []*url.URL
	for _, o := range all {
		o.Host, o.Port, o.HTTPHost, o.HTTPPort = "127.0.0.1", server.RANDOM_PORT, "127.0.0.1", server.RANDOM_PORT
		o.StoreDir, o.PidFile, o.NoSigs, o.NoLog = t.TempDir(), "", true, true
		if len(o.Routes) > 0 {
			host, port := split(t, freePort(t))
			o.Cluster.Host, o.Cluster.Port = host, port
			routes = append(routes, &url.URL{Scheme: "nats-route", Host: net.JoinHostPort(host, strconv.Itoa(port)), User: o.Routes[0].User})
		}
		if o.LeafNode.Port != 0 {
			o.LeafNode.Host, o.LeafNode.Port = "127.0.0.1", server.RANDOM_PORT
		}
	}
	var out []*server.Server
	for _, o := range all {
		if len(o.Routes) > 0 {
			o.Routes = routes
		}
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		s.Start()
		out = append(out, s)
	}
	for _, s := range out {
		if !s.ReadyForConnections(patience) {
			t.Fatalf("%s is not ready for connections", s.Name())
		}
	}
	return out
}

func split(t *testing.T, addr string) (string, int) {
	t.Helper()
	host, p, err := net.SplitHostPort(addr)
	port, e := strconv.Atoi(p)
	if err := errors.Join(err, e); err != nil {
		t.Fatal(err)
	}
	return host, port
}

// port is the one of an address in a configuration.
func port(t *testing.T, addr string) int {
	t.Helper()
	_, p := split(t, addr)
	return p
}

// urls are where clients reach the servers.
func urls(all []*server.Server) string {
	var out []string
	for _, s := range all {
		out = append(out, s.ClientURL())
	}
	return strings.Join(out, ",")
}

// healthy waits until a path of each server's monitoring is answered with 200.
func healthy(t *testing.T, all []*server.Server, path string) {
	t.Helper()
	for _, s := range all {
		var seen last
		await(t, s.Name()+" answers on "+path, func() bool {
			status, body := get("http://" + s.MonitorAddr().String() + path)
			seen = last(body)
			return status == http.StatusOK
		}, &seen)
	}
}

// connected waits until a node of that name is connected, in the account.
func connected(t *testing.T, all []*server.Server, name, account string) {
	t.Helper()
	await(t, name+" is connected to NATS in the account "+account, func() bool {
		for _, s := range all {
			_, body := get("http://" + s.MonitorAddr().String() + "/connz?auth=true")
			var list server.Connz
			if json.Unmarshal([]byte(body), &list) != nil {
				continue
			}
			for _, c := range list.Conns {
				if c.Name == name && c.Account == account {
					return true
				}
			}
		}
		return false
	})
}

// jetStream connects as a node does.
func jetStream(t *testing.T, url string, opts ...nats.Option) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

// store makes a stream with so many replicas and stores a message, as soon as
// the servers have found one another.
func store(t *testing.T, js jetstream.JetStream, replicas int) {
	t.Helper()
	await(t, "a stream is kept by as many servers as nats.replicas", func() bool {
		// What is asked before there is a leader has no answer.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
			Name: "perch_test", Subjects: []string{"perch.h.test.>"}, Replicas: replicas,
		})
		if err == nil {
			_, err = js.Publish(ctx, "perch.h.test.topic", []byte("stored"))
		}
		return err == nil
	})
}

// replaced is a text with files of the test in the place of those that it names.
func replaced(t *testing.T, text string, files map[string]string) string {
	t.Helper()
	for name, path := range files {
		if !strings.Contains(text, name) {
			t.Errorf("it does not name %s", name)
		}
		text = strings.ReplaceAll(text, name, path)
	}
	return text
}

// versionOf is the version of a module that a go.mod requires.
func versionOf(t *testing.T, gomod, module string) string {
	t.Helper()
	for line := range strings.Lines(gomod) {
		if f := strings.Fields(strings.TrimPrefix(line, "require ")); len(f) >= 2 && f[0] == module {
			return f[1]
		}
	}
	t.Fatalf("no %s in go.mod", module)
	return ""
}

// natsImage is the image of the NATS server that Perch is built with.
func natsImage(t *testing.T) string {
	t.Helper()
	v := versionOf(t, read(t, root, "go.mod"), "github.com/nats-io/nats-server/v2")
	if here := versionOf(t, read(t, "go.mod"), "github.com/nats-io/nats-server/v2"); here != v {
		t.Errorf("the tests have NATS %s, perch has %s", here, v)
	}
	return "nats:" + strings.TrimPrefix(v, "v") + "-alpine"
}

// deployed is a file of deploy/.
func deployed(t *testing.T, elem ...string) string {
	t.Helper()
	return read(t, append([]string{root, "deploy"}, elem...)...)
}

func absolute(t *testing.T, elem ...string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// natsUser signs in as a node with that environment does.
func natsUser(env environment) nats.Option {
	return nats.UserInfo("perch", env["PERCH_NATS_PASSWORD"])
}
