package cluster

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"perch/topic"
)

// With siteDirEnv set, this test's binary is a site, whose hub is at siteHubEnv, and
// publishes until it is killed; it says what has been answered.
const (
	siteDirEnv  = "PERCH_TEST_SITE_DIR"
	siteHubEnv  = "PERCH_TEST_SITE_HUB"
	siteTopics  = 4
	sitePublish = 400
)

func siteProcess(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
	}
	l, err := Open(Options{Name: "berlin", Server: ServerOptions{
		Dir: dir, StoreBytes: 1 << 30, Leaf: LeafOptions{URL: os.Getenv(siteHubEnv), Site: "berlin"},
	}})
	fail(err)
	b := NewBroker(l, BrokerOptions{})
	catch := &catcher{Memory: topic.NewMemory(topic.MemoryOptions{})}
	_, err = topic.New(topic.Options{Broker: catch, Namespaces: []topic.NamespaceOptions{long}})
	fail(err)
	b.SetNamespaces(catch.all)
	fail(b.Start(newReceiver()))
	fail(b.Wait(context.Background()))
	said := make(chan string, 64)
	for k := range siteTopics {
		name := number("news:t", k)
		go func() {
			for i := 1; ; i++ {
				text := number("a", i)
				_, err := waitFor(b.life, func(done func(topic.Position, error)) {
					b.Publish(name, &topic.Publication{Data: []byte(text)}, longStored, done)
				})
				fail(err)
				said <- name + " " + text
			}
		}()
	}
	for s := range said {
		fmt.Println(s)
	}
}

// A site that is killed has forwarded, or forwards later, all that it has answered.
func TestLeafKilled(t *testing.T) {
	for _, up := range []bool{true, false} {
		t.Run(fmt.Sprintf("uplink %v", up), func(t *testing.T) {
			r := newRig(t)
			w := r.wan()
			if !up {
				w.Cut()
			}
			dir := t.TempDir()
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), siteDirEnv+"="+dir, siteHubEnv+"="+w.url())
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			answered := map[string][]string{}
			lines := bufio.NewScanner(out)
			for n := 0; lines.Scan(); n++ {
				if n == sitePublish {
					_ = cmd.Process.Kill()
				}
				name, text, _ := strings.Cut(lines.Text(), " ")
				if name == "failed" {
					t.Fatal(lines.Text())
				}
				answered[name] = append(answered[name], text)
			}
			_ = cmd.Wait()
			if len(answered) != siteTopics {
				t.Fatalf("%v", answered)
			}
			s := &site{dir: dir, name: "berlin", ns: r.ns, opts: LeafOptions{URL: w.url(), Site: "berlin"}}
			s.start(t)
			w.Heal()
			until(t, "nothing waiting", func() bool { c := s.Counts().Leaf; return c.Up && c.Waiting == 0 })
			for name, want := range answered {
				here, there := s.all(name), r.hub.all(name)
				for _, have := range [][]string{here, there} {
					ordered(t, name, have)
					if len(have) < len(want) || have[len(want)-1] != want[len(want)-1] {
						t.Errorf("%s: %d answered, %d there", name, len(want), len(have))
					}
				}
				// What was stored here without an answer is at the hub, too.
				if len(here) != len(there) {
					t.Errorf("%s: %d at the site, %d at the hub", name, len(here), len(there))
				}
			}
		})
	}
}

// TestLeafUnclean: after a stop of the machine the sequences of what waits may come
// again, so the hub sees them under another id; what it has is not sent again.
func TestLeafUnclean(t *testing.T) {
	_, _, s := cutSite(t)
	s.put("news:x", "a2")
	id, at := s.leaf.up.id, s.leaf.up.at
	s.kill()
	s.start(t)
	if s.leaf.up.id != id {
		t.Errorf("after an end of the process the id is %s, was %s", s.leaf.up.id, id)
	}
	s.kill()
	if err := os.WriteFile(filepath.Join(s.dir, bootFile), []byte("another run of the machine"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	if s.leaf.up.id == id || s.leaf.up.at != at {
		t.Errorf("after a stop of the machine the id is %s, was %s, and the hub has it up to %d, had up to %d", s.leaf.up.id, id, s.leaf.up.at, at)
	}
}
