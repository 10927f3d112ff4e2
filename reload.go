package perch

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"perch/auth"
	"perch/netpoll"
	"perch/topic"
)

// reloadable are the keys that a running server takes over from a reload. What it
// takes of the namespaces is in reload_topics.go.
var reloadable = []string{
	"api.key", "log.level",
	"auth.hmac_secret", "auth.keys", "auth.jwks_url", "auth.jwks_refresh", "auth.issuer", "auth.audience",
	"auth.token_ttl", "auth.refresh_ttl", "auth.clients",
	"websocket.allowed_origins",
	"limits.connections", "limits.connections_per_address", "limits.connections_per_subnet",
	"limits.connection_rate_per_address", "limits.connection_rate_per_subnet", "limits.connection_rate", "limits.connection_wait",
	"limits.handshake_timeout", "limits.message_timeout", "limits.message_rate",
	"drain.budget", "drain.delay", "drain.rate",
}

// The outcomes of a reload, as metric labels.
const (
	reloadOK     = "ok"
	reloadFailed = "failed"
)

// Reload takes over what can change while the server runs: keys (their files
// are read again), clients, token lifetimes, the API key, origins, limits on
// connections, permissions of topics and whether the backend is asked for them,
// new namespaces, the log level and the drain. No connection is dropped: sessions live on until their token ends,
// also where the key that signed it, or the client that asked for it, is gone.
// It takes all of it over or nothing: an error says in one line each what is
// wrong. What differs and needs a restart is logged by its key, and left as it
// is. Safe from any goroutine.
func (s *Server) Reload(o Options) error {
	s.reload.Lock()
	defer s.reload.Unlock()
	err := s.reloadLocked(o)
	if err != nil {
		s.reloads.Inc(reloadFailed)
		return err
	}
	s.reloads.Inc(reloadOK)
	return nil
}

// ReloadFailed counts a reload that ended before there were options to hand to
// Reload: their file could not be read, say. Safe from any goroutine.
func (s *Server) ReloadFailed() { s.reloads.Inc(reloadFailed) }

// reloadOutcomes are the counts of reloads; an outcome that has not been is 0.
func (s *Server) reloadOutcomes() map[string]uint64 {
	return map[string]uint64{reloadOK: s.reloads.Load(reloadOK), reloadFailed: s.reloads.Load(reloadFailed)}
}

func (s *Server) reloadLocked(o Options) error {
	old := s.live.Load()
	o = o.WithDefaults()
	if o.Dev {
		// Everybody knows the example client's secret: it does not come to a server
		// that was started without it.
		if !old.Dev {
			return errors.New("dev: a running server does not go over to dev mode: take it out of the configuration, or restart with it")
		}
		o = o.WithDev()
	}
	if errs := o.Check(); len(errs) > 0 {
		return errors.Join(errs...)
	}
	if state(s.state.Load()) == stateDraining {
		return errors.New("perch: the server is draining")
	}
	next, left := merge(&s.opts, old, &o)
	// What is new has been checked with what is new, not yet with what stays.
	if errs := next.Check(); len(errs) > 0 {
		for i, err := range errs {
			errs[i] = fmt.Errorf("%w (with what a reload leaves as it is; a restart takes over all of it)", err)
		}
		return errors.Join(errs...)
	}
	capacity, err := capacityFor(next.Limits, s.loops)
	if err != nil {
		return err
	}
	if next.API.Key == "" {
		if next.API.Key, err = auth.LoadOrCreateAPIKey(next.DataDir); err != nil {
			return fmt.Errorf("api.key: %w", err)
		}
	}
	apply, drop, err := s.authority.Prepare(next.authOptions(s.log))
	if err != nil {
		return err
	}
	if err := s.topics.SetNamespaces(next.Topics.Default, next.Topics.Namespaces); err != nil {
		drop()
		return err
	}
	// Nothing fails from here on.
	apply()
	s.origins.Store(newOrigins(next.WebSocket.AllowedOrigins))
	s.net.SetLimits(netLimits(next, capacity))
	s.capacity.Store(&capacity)
	if s.level != nil {
		_ = s.level.UnmarshalText([]byte(next.Log.Level)) // Check has seen it
	}
	if s.nodes != nil {
		s.nodes.SetDigest(next.digest())
	}
	changed := changedKeys(old, next)
	s.live.Store(next)
	for _, key := range left {
		s.log.Warn("key left as it is: it needs a restart", "key", key)
	}
	s.log.Info("configuration reloaded", "changed", strings.Join(changed, " "))
	return nil
}

// netLimits are the limits of o that package netpoll keeps.
func netLimits(o *Options, c capacity) netpoll.Limits {
	return netpoll.Limits{
		Connections: c.soft, HardConnections: c.hard,
		PerAddress:     netpoll.AddressLimits{Connections: o.Limits.ConnectionsPerAddress, Rate: o.Limits.ConnectionRatePerAddress},
		PerSubnet:      netpoll.AddressLimits{Connections: o.Limits.ConnectionsPerSubnet, Rate: o.Limits.ConnectionRatePerSubnet},
		ConnectionRate: o.Limits.ConnectionRate, ConnectionWait: o.Limits.ConnectionWait,
		HandshakeTimeout: o.Limits.HandshakeTimeout, MessageTimeout: o.Limits.MessageTimeout, MessageRate: o.Limits.MessageRate,
	}
}

// merge is old with what can be taken over of o, and the keys that differ and
// can't. first are those that the server was made with.
func merge(first, old, o *Options) (next *Options, left []string) {
	m := *old
	takeOver(reflect.ValueOf(&m).Elem(), reflect.ValueOf(o).Elem(), "")
	// A bound that was not there at the start has nothing to go by.
	if first.Limits.ConnectionsPerAddress == 0 {
		m.Limits.ConnectionsPerAddress = 0
	}
	if first.Limits.ConnectionsPerSubnet == 0 {
		m.Limits.ConnectionsPerSubnet = 0
	}
	m.Topics.Default, m.Topics.Namespaces = mergeTopics(old, o)
	return &m, changedKeys(&m, o)
}

// takeOver copies the fields that are reloadable.
func takeOver(dst, src reflect.Value, prefix string) {
	for i := range dst.NumField() {
		key, ok := keyOf(dst.Type().Field(i), prefix)
		switch {
		case !ok:
		case slices.Contains(reloadable, key):
			dst.Field(i).Set(src.Field(i))
		case dst.Field(i).Kind() == reflect.Struct:
			takeOver(dst.Field(i), src.Field(i), key+".")
		}
	}
}

// keyOf is the key of a field; false: it has none.
func keyOf(f reflect.StructField, prefix string) (string, bool) {
	tag := f.Tag.Get("koanf")
	return prefix + tag, f.IsExported() && tag != "" && tag != "-"
}

// changedKeys are the keys in which two options differ, sorted; of namespaces
// with the name.
func changedKeys(a, b *Options) []string {
	keys := map[string]struct{}{}
	compare(reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem(), "", keys)
	return slices.Sorted(maps.Keys(keys))
}

func compare(a, b reflect.Value, prefix string, keys map[string]struct{}) {
	for i := range a.NumField() {
		key, ok := keyOf(a.Type().Field(i), prefix)
		if !ok {
			continue
		}
		x, y := a.Field(i), b.Field(i)
		switch list := x.Interface().(type) {
		case []topic.NamespaceOptions:
			compareNamespaces(list, y.Interface().([]topic.NamespaceOptions), key, keys)
		default:
			if x.Kind() == reflect.Struct {
				compare(x, y, key+".", keys)
			} else if !same(x, y) {
				keys[key] = struct{}{}
			}
		}
	}
}

// same: an empty list is none.
func same(x, y reflect.Value) bool {
	if x.Kind() == reflect.Slice && x.Len() == 0 && y.Len() == 0 {
		return true
	}
	return reflect.DeepEqual(x.Interface(), y.Interface())
}

func compareNamespaces(a, b []topic.NamespaceOptions, key string, keys map[string]struct{}) {
	for _, ns := range a {
		name := fmt.Sprintf("%s[%s]", key, ns.Name)
		if i := namespaceAt(b, ns.Name); i >= 0 {
			compare(reflect.ValueOf(ns), reflect.ValueOf(b[i]), name+".", keys)
		} else {
			keys[name] = struct{}{}
		}
	}
	for _, ns := range b {
		if namespaceAt(a, ns.Name) < 0 {
			keys[fmt.Sprintf("%s[%s]", key, ns.Name)] = struct{}{}
		}
	}
}
