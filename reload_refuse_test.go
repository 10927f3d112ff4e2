package perch_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"perch"
	"perch/internal/testkit"
	"perch/topic"
)

// reloads are the counts of reloads, as the metrics tell them.
func (s *server) wantReloads(t *testing.T, ok, failed string) {
	t.Helper()
	_, m := get(t, "http://"+s.admin+"/metrics")
	for outcome, n := range map[string]string{"ok": ok, "failed": failed} {
		if !strings.Contains(m, `perch_config_reloads_total{outcome="`+outcome+`"} `+n+"\n") {
			t.Errorf("%s is not %s in the metrics", outcome, n)
		}
	}
}

// TestReloadMetrics: both outcomes are there from the start, and a reload that
// did not come to options counts as failed.
func TestReloadMetrics(t *testing.T) {
	s, o := reloadable(t, nil)
	s.wantReloads(t, "0", "0")
	s.ReloadFailed()
	s.wantReloads(t, "0", "1")
	s.reload(t, o)
	s.wantReloads(t, "1", "1")
}

// TestReloadToDev: a server that was started without dev mode does not get its
// example client, whose secret everybody knows; one that was goes on with it.
func TestReloadToDev(t *testing.T) {
	s, o := reloadable(t, nil)
	o.Dev = true
	for _, o := range []perch.Options{o, o.WithDev()} {
		err := s.Reload(o)
		if err == nil || !strings.HasPrefix(err.Error(), "dev: ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("reload: %v", err)
		}
	}
	if status, answer := s.asks(t, perch.DevClient, perch.DevSecret, nil); status != http.StatusUnauthorized {
		t.Errorf("the example client gets %d %v", status, answer)
	}
	s.wantReloads(t, "0", "2")

	s, o = reloadable(t, func(o *perch.Options) { o.Dev = true })
	o.Auth.Clients = []perch.ClientOptions{{ID: "device", SecretHash: hashOf(t, "sesame")}}
	s.reload(t, o)
	for id, secret := range map[string]string{perch.DevClient: perch.DevSecret, "device": "sesame"} {
		if status, answer := s.asks(t, id, secret, nil); status != http.StatusOK {
			t.Errorf("%s in dev mode: %d %v", id, status, answer)
		}
	}
}

// TestReloadMixRefused: a configuration that is good by itself and not beside what
// a reload leaves changes nothing.
func TestReloadMixRefused(t *testing.T) {
	s, o := reloadable(t, func(o *perch.Options) { o.Topics.MaxLength = 20 })
	o.Topics.MaxLength = 200
	o.Topics.Default.AllowPublishForClient = false
	o.Auth.Clients = []perch.ClientOptions{{ID: "device", SecretHash: hashOf(t, "sesame"), Channels: []string{strings.Repeat("n", 100)}}}
	err := s.Reload(o)
	if err == nil || !strings.Contains(err.Error(), "auth.clients[0].channels[0]") || !strings.Contains(err.Error(), "restart") {
		t.Errorf("reload: %v", err)
	}
	if status, _ := s.asks(t, "device", "sesame", nil); status != http.StatusUnauthorized {
		t.Errorf("a client of a configuration that was refused: %d", status)
	}

	// A permission that is taken away and that something else stands on.
	cache := topic.NamespaceOptions{
		Name: "state", HistorySize: 1, HistoryTTL: time.Minute, AllowRecovery: true, ForceRecoveryMode: topic.RecoverCache, AutoCacheRecover: true,
	}
	s, o = reloadable(t, func(o *perch.Options) { o.Topics.Namespaces = []topic.NamespaceOptions{cache} })
	cache.AllowRecovery, cache.AutoCacheRecover = false, false
	o.Topics.Namespaces = []topic.NamespaceOptions{cache}
	if err := s.Reload(o); err == nil || !strings.Contains(err.Error(), "topics.namespaces[0].auto_cache_recover") {
		t.Errorf("reload: %v", err)
	}
	s.wantReloads(t, "0", "1")
}

// TestReloadAsksBackend: over the wire, a namespace that leaves subscriptions to
// the backend leaves them to it from the reload on; where the server has none,
// nobody is let in unasked.
func TestReloadAsksBackend(t *testing.T) {
	b := newService(t)
	b.on("subscribe", says(`{"error":{"code":4242,"message":"no"}}`))
	code := func(s *server, topic string) any {
		p := s.session(t, "alice")
		p.send(testkit.SubscribeCommand(2, topic))
		for {
			for _, r := range p.lines() {
				if r["id"] == float64(2) {
					e, _ := r["error"].(map[string]any)
					return e["code"]
				}
			}
		}
	}
	asks := []topic.NamespaceOptions{
		{Name: "there", AllowSubscribeForClient: true, SubscribeProxyEnabled: true},
		{Name: "fresh", AllowSubscribeForClient: true, SubscribeProxyEnabled: true},
	}
	for _, tt := range []struct {
		name string
		url  string
		want float64
		left int
	}{{"configured", b.URL + "/subscribe", 4242, 0}, {"not configured", "", 103, 5}} {
		t.Run(tt.name, func(t *testing.T) {
			s, o := reloadable(t, func(o *perch.Options) {
				o.Backend.Subscribe = tt.url
				o.Topics.Namespaces = []topic.NamespaceOptions{{Name: "there"}}
			})
			o.Backend.Subscribe = b.URL + "/subscribe"
			o.Topics.Namespaces = asks
			s.reload(t, o)
			for _, name := range []string{"there:a", "fresh:a"} {
				if got := code(s, name); got != tt.want {
					t.Errorf("%s is answered %v, want %v", name, got, tt.want)
				}
			}
			if n := strings.Count(s.log.String(), "key left as it is"); n != tt.left {
				t.Errorf("%d keys are named, want %d: %s", n, tt.left, s.log.String())
			}
		})
	}
}
