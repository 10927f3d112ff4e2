package deploy

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
)

var fence = regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```$")

// blocks are the examples of docs/cluster.md in one language.
func blocks(t *testing.T, language string, least int) []string {
	t.Helper()
	var out []string
	for _, m := range fence.FindAllStringSubmatch(read(t, root, "docs", "cluster.md"), -1) {
		if m[1] == language {
			out = append(out, m[2])
		}
	}
	if len(out) < least {
		t.Fatalf("%d examples in %s, want %d", len(out), language, least)
	}
	return out
}

// block is the one that holds a text.
func block(t *testing.T, language, mark string) string {
	t.Helper()
	for _, b := range blocks(t, language, 1) {
		if strings.Contains(b, mark) {
			return b
		}
	}
	t.Fatalf("no example holds %s", mark)
	return ""
}

var files = regexp.MustCompile(`/etc/[a-z/.-]+[a-z]`)

// TestDocumentedConfiguration: Perch takes the examples, and starts with those
// that need no other machine.
func TestDocumentedConfiguration(t *testing.T) {
	for i, text := range blocks(t, "yaml", 4) {
		t.Run(fmt.Sprint(i+1), func(t *testing.T) {
			dir := t.TempDir()
			// Files have to be there; what is in them is looked at on use.
			for _, name := range files.FindAllString(text, -1) {
				text = strings.ReplaceAll(text, name, write(t, dir, name, ""))
			}
			env := environment{"PERCH_CONFIG": write(t, dir, "perch.yaml", text)}
			checkConfig(t, env)
			if strings.Contains(text, "url:") {
				return
			}
			env["PERCH_NATS_STORE_BYTES"] = "1GiB"
			n := serve(t, env)
			n.answers(t, "/readyz")
			if info, err := os.Stat(n.env["PERCH_DATA_DIR"] + "/nats/jetstream"); err != nil || !info.IsDir() {
				t.Errorf("no streams in data_dir: %v", err)
			}
		})
	}
}

// TestDocumentedNKey starts the example with TLS on both sides and an nkey, and a
// node that signs in.
func TestDocumentedNKey(t *testing.T) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	text := block(t, "conf", "nkey:")
	documented := regexp.MustCompile(`nkey: (U[A-Z2-7]{55}) `).FindStringSubmatch(text)
	if documented == nil || !nkeys.IsValidPublicUserKey(documented[1]) {
		t.Fatalf("no public nkey in\n%s", text)
	}
	cert, key := certificate(t)
	o := natsOptions(t, replaced(t, text, map[string]string{
		documented[1]: public, "/etc/nats/server.pem": cert, "/etc/nats/server.key": key, "/etc/nats/clients-ca.pem": cert,
	}), nil)
	all := natsServers(t, o)

	dir := t.TempDir()
	config := replaced(t, block(t, "yaml", "nkey:"), map[string]string{
		"tls://nats.example.com:4222": strings.Replace(urls(all), "nats://", "tls://", 1), "/etc/perch/node.nk": write(t, dir, "node.nk", string(seed)),
		"/etc/perch/nats-ca.pem": cert, "/etc/perch/node.pem": cert, "/etc/perch/node.key": key,
		"replicas: 3": "replicas: 1", // one server stands for three
	})
	n := serve(t, environment{"PERCH_CONFIG": write(t, dir, "perch.yaml", config), "PERCH_NATS_NAME": "signs-in"})
	n.answers(t, "/readyz")
	connected(t, all, "signs-in", "PERCH")
}

// TestDocumentedPermissions: with those that are documented a node can do all
// that it does, and may not reach what is not its own.
func TestDocumentedPermissions(t *testing.T) {
	env := environment{"NATS_PASSWORD": `"` + secret("nats") + `"`}
	all := natsServers(t, natsOptions(t, block(t, "conf", "permissions:"), env))
	denied := &refusals{}
	nc, js := jetStream(t, urls(all), nats.UserInfo("perch", secret("nats")), nats.NoEcho(), nats.ErrorHandler(denied.add))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	// Streams of histories: stored, republished, read by subject and in order.
	stream, err := js.CreateStream(ctx, jetstream.StreamConfig{
		Name: "perch_h_test", Subjects: []string{"perch.h.test.*"}, AllowDirect: true, AllowRollup: true,
		RePublish: &jetstream.RePublish{Source: "perch.h.test.*", Destination: "perch.d.test.{{wildcard(1)}}"},
	})
	must(t, err)
	delivered, err := nc.SubscribeSync("perch.d.>")
	must(t, err)
	_, err = js.Publish(ctx, "perch.h.test.a", []byte("1"))
	must(t, err)
	_, err = delivered.NextMsgWithContext(ctx)
	must(t, err)
	_, err = stream.GetLastMsgForSubject(ctx, "perch.h.test.a")
	must(t, err)
	ordered, err := js.OrderedConsumer(ctx, "perch_h_test", jetstream.OrderedConsumerConfig{})
	must(t, err)
	_, err = ordered.Next()
	must(t, err)
	must(t, stream.Purge(ctx, jetstream.WithPurgeSubject("perch.h.test.a")))

	// Buckets.
	for _, name := range []string{"perch_clients", "perch_tokens"} {
		kv, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: name})
		must(t, err)
		_, err = kv.Put(ctx, "key", []byte("value"))
		must(t, err)
		_, err = kv.Get(ctx, "key")
		must(t, err)
		watch, err := kv.WatchAll(ctx)
		must(t, err)
		if e := <-watch.Updates(); e == nil || e.Key() != "key" {
			t.Errorf("watching %s brings %v", name, e)
		}
		must(t, watch.Stop())
		must(t, kv.Delete(ctx, "key"))
	}

	// Nodes ask one another.
	other, _ := jetStream(t, urls(all), nats.UserInfo("perch", secret("nats")), nats.ErrorHandler(denied.add))
	_, err = other.Subscribe("perch.n.>", func(m *nats.Msg) { _ = m.Respond(nil) })
	must(t, err)
	must(t, other.FlushWithContext(ctx))
	_, err = nc.RequestWithContext(ctx, "perch.n.other.ask", nil)
	must(t, err)

	// And a real one does what it does.
	n := serve(t, environment{
		"PERCH_ENGINE": "nats", "PERCH_NATS_URL": urls(all), "PERCH_NATS_NAME": "shares", "PERCH_NATS_USER": "perch", "PERCH_NATS_PASSWORD": secret("nats"),
	})
	n.answers(t, "/readyz")
	connected(t, all, "shares", "SHARED")
	must(t, nc.FlushWithContext(ctx))
	if all := denied.list(); len(all) > 0 || strings.Contains(strings.ToLower(n.said.String()), "permissions violation") {
		t.Errorf("denied: %v\n%s", all, n.said)
	}

	must(t, nc.Publish("elsewhere.a", nil))
	_, err = nc.SubscribeSync(">")
	must(t, err)
	await(t, "what is not its own is denied", func() bool { return len(denied.list()) == 2 })
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refusals are what a server has told a connection.
type refusals struct {
	mu  sync.Mutex
	all []string
}

func (r *refusals) add(_ *nats.Conn, _ *nats.Subscription, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, err.Error())
}

func (r *refusals) list() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// TestDocumentedServers: NATS takes each example.
func TestDocumentedServers(t *testing.T) {
	t.Setenv("NATS_PASSWORD", `"`+secret("nats")+`"`)
	cert, key := certificate(t)
	for _, text := range blocks(t, "conf", 2) {
		for _, name := range files.FindAllString(text, -1) {
			path := cert
			if strings.HasSuffix(name, ".key") {
				path = key
			}
			text = strings.ReplaceAll(text, name, path)
		}
		if _, err := server.ProcessConfigFile(write(t, t.TempDir(), "nats.conf", text)); err != nil {
			t.Errorf("%v in\n%s", err, text)
		}
	}
}
