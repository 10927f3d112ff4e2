package session

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
)

func opened(slot int) *Session {
	s := &Session{}
	s.Open(nil, stubLoop{}, MakeID(0, 1, uint32(slot)))
	return s
}

// buckets is how many buckets the registry has, each a pointer.
func (r *Registry) bucketsOfAll() int {
	n := 0
	for i := range r.shards {
		n += len(r.shards[i].buckets)
	}
	return n
}

func sorted(ids []ID) []ID {
	slices.Sort(ids)
	return ids
}

// TestRegistryModel compares with a map what random sessions of random users
// leave.
func TestRegistryModel(t *testing.T) {
	for _, tt := range []struct {
		name                   string
		sessions, users, steps int
	}{
		{"one user", 50, 1, 4000},
		{"many of few users", 3000, 7, 30000},
		{"one or two of each", 4000, 2000, 60000},
	} {
		for seed := range uint64(2) {
			t.Run(fmt.Sprintf("%s, seed %d", tt.name, seed), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 2))
				r := NewRegistry()
				sessions := make([]*Session, tt.sessions)
				in := make([]bool, tt.sessions)
				model := make(map[string][]ID)
				count := 0
				for i := range sessions {
					sessions[i] = opened(i)
				}
				check := func() {
					t.Helper()
					if r.Count() != count || r.Users() != len(model) {
						t.Fatalf("%d sessions of %d users, want %d of %d", r.Count(), r.Users(), count, len(model))
					}
				}
				for step := range tt.steps {
					// Grows to nearly all, then shrinks to nearly none.
					k := rng.IntN(tt.sessions)
					s := sessions[k]
					grow := step < tt.steps/2
					if against := rng.IntN(8) == 0; in[k] == (grow != against) {
						continue
					}
					if in[k] {
						r.Remove(s)
						user := s.User()
						ids := model[user]
						model[user] = slices.DeleteFunc(ids, func(id ID) bool { return id == s.id })
						if len(model[user]) == 0 {
							delete(model, user)
						}
						count--
					} else {
						user := fmt.Sprint("user-", rng.IntN(tt.users))
						s.Open(nil, stubLoop{}, MakeID(0, uint32(step)+1, uint32(k)))
						r.Identify(s, user, 0)
						if s.User() != user {
							t.Fatalf("identified as %q", s.User())
						}
						model[user] = append(model[user], s.id)
						count++
					}
					in[k] = !in[k]
					if user := fmt.Sprint("user-", rng.IntN(tt.users)); step%7 == 0 {
						got := sorted(r.ByUser(user, nil))
						if want := sorted(slices.Clone(model[user])); !slices.Equal(got, want) {
							t.Fatalf("%s has %v, want %v", user, got, want)
						}
					}
					if step%5000 == 0 {
						check()
					}
				}
				check()
				for user, want := range model {
					if got := sorted(r.ByUser(user, nil)); !slices.Equal(got, sorted(want)) {
						t.Errorf("%s has %v, want %v", user, got, want)
					}
				}
				for _, s := range sessions {
					r.Remove(s)
				}
				count, model = 0, nil
				check()
			})
		}
	}
}

func TestRegistryByUser(t *testing.T) {
	r := NewRegistry()
	if got := r.ByUser("alice", nil); got != nil {
		t.Errorf("an empty registry knows %v", got)
	}
	var all []*Session
	for i, user := range []string{"alice", "bob", "alice", "", "Alice", "alice "} {
		s := opened(i)
		r.Identify(s, user, 0)
		all = append(all, s)
	}
	ids := []ID{42}
	if got := r.ByUser("alice", ids); len(got) != 3 || got[0] != 42 || !slices.Equal(sorted(got[1:]), []ID{all[0].id, all[2].id}) {
		t.Errorf("alice's, behind what was there: %v", got)
	}
	if got := r.ByUser("", nil); !slices.Equal(got, []ID{all[3].id}) {
		t.Errorf("the sessions of nobody: %v", got)
	}
	if r.Count() != 6 || r.Users() != 5 {
		t.Errorf("%d sessions of %d users", r.Count(), r.Users())
	}
	r.Identify(all[0], "bob", 0) // once a session
	if all[0].User() != "alice" || r.Count() != 6 {
		t.Errorf("identified again as %q", all[0].User())
	}
	r.Remove(all[0])
	r.Remove(all[0])
	r.Remove(opened(9))
	if got := r.ByUser("alice", nil); !slices.Equal(got, []ID{all[2].id}) || r.Count() != 5 {
		t.Errorf("alice's, one gone: %v of %d", got, r.Count())
	}
	if all[0].next != nil {
		t.Error("a removed session holds another")
	}
}

func TestRegistryClients(t *testing.T) {
	r := NewRegistry()
	own, moved := opened(1), opened(2)
	moved.Extra = &Extra{Client: Node(7).ClientID(MakeID(5, 5, 5))}
	r.Welcome(moved)
	for _, tt := range []struct {
		name, client string
		id           ID
		ok           bool
	}{
		{"own", own.ClientID(testNode), own.id, true},
		{"moved here", moved.ClientID(testNode), moved.id, true},
		{"moved here, by its place", testNode.ClientID(moved.id), moved.id, true},
		{"of another server, not here", Node(7).ClientID(MakeID(5, 5, 6)), 0, false},
		{"nonsense", "x", 0, false},
	} {
		if id, ok := r.ByClient(testNode, tt.client); id != tt.id || ok != tt.ok {
			t.Errorf("%s: %#x, %v", tt.name, uint64(id), ok)
		}
	}
	r.Remove(own)
	if _, ok := r.ByClient(testNode, moved.Extra.Client); !ok {
		t.Error("lost, though another has gone")
	}
	r.Remove(moved) // it has no user
	if id, ok := r.ByClient(testNode, moved.Extra.Client); ok {
		t.Errorf("gone, and found as %#x", uint64(id))
	}
}

// The table follows its sessions up and down: at most 16 bytes a session on the
// way up (the chains' 8 stand in the sessions), and no more than its first
// buckets in the end.
func TestRegistryMemory(t *testing.T) {
	const n, least = 20000, registryShards * registryMinBuckets
	r := NewRegistry()
	if got := r.bucketsOfAll(); got != 0 {
		t.Errorf("%d buckets for nobody", got)
	}
	sessions := make([]*Session, n)
	users := make([]string, n)
	for i := range sessions {
		sessions[i], users[i] = opened(i), fmt.Sprint("user-", i)
	}
	before := registryHeap()
	for i, s := range sessions {
		r.Identify(s, users[i], 0)
	}
	each := float64(registryHeap()-before) / n
	t.Logf("%.1f B of heap a session", each)
	if each > 17 {
		t.Errorf("%.1f B of heap a session, the bound is 16", each)
	}
	for i, s := range sessions {
		r.Remove(s)
		if left := n - 1 - i; r.bucketsOfAll() > 16*left+2*least {
			t.Fatalf("%d buckets for %d sessions", r.bucketsOfAll(), left)
		}
	}
	if got := r.bucketsOfAll(); got > least {
		t.Errorf("%d buckets when all have gone", got)
	}
	runtime.KeepAlive(sessions)
	runtime.KeepAlive(users)
}

func registryHeap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Sessions of one user live on several loops: the chains are shared, the
// sessions are not.
func TestRegistryConcurrent(t *testing.T) {
	const loops, each, rounds = 4, 200, 20
	r := NewRegistry()
	var working, looking sync.WaitGroup
	stop := make(chan struct{})
	for l := range loops {
		working.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(l), 3))
			sessions := make([]Session, each)
			for range rounds {
				for i := range sessions {
					s := &sessions[i]
					s.Open(nil, stubLoop{index: l}, MakeID(l, 1, uint32(i)))
					r.Identify(s, fmt.Sprint("user-", i%50), 0)
				}
				for _, i := range rng.Perm(each) {
					s := &sessions[i]
					if !slices.Contains(r.ByUser(s.User(), nil), s.id) {
						t.Errorf("%#x is not among those of %s", uint64(s.id), s.User())
					}
					r.Remove(s)
					if slices.Contains(r.ByUser(s.User(), nil), s.id) {
						t.Errorf("%#x has gone, and is among those of %s", uint64(s.id), s.User())
					}
				}
			}
		})
	}
	looking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if n := r.Count(); n < 0 || n > loops*each {
				t.Errorf("%d sessions", n)
			}
			if n := r.Users(); n > 50 {
				t.Errorf("%d users", n)
			}
			for _, id := range r.ByUser("user-7", nil) {
				if id.Slot()%50 != 7 {
					t.Errorf("%#x is not of user-7", uint64(id))
				}
			}
		}
	})
	working.Wait()
	close(stop)
	looking.Wait()
	if r.Count() != 0 || r.Users() != 0 {
		t.Errorf("%d sessions of %d users are left", r.Count(), r.Users())
	}
}

func BenchmarkRegistry(b *testing.B) {
	r := NewRegistry()
	for i := range 100000 {
		r.Identify(opened(i), fmt.Sprint("user-", i), 0)
	}
	s := opened(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		s.Open(nil, stubLoop{}, s.id)
		r.Identify(s, "user-x", 0)
		r.Remove(s)
	}
}
