package perch

import (
	"slices"
	"testing"
	"time"

	"perch/topic"
)

// TestMergeTopics: what a reload makes of a namespace, by what the server runs
// with and what the file says now. No result allows what the file leaves to the
// backend or to a history that this server has not.
func TestMergeTopics(t *testing.T) {
	const url = "http://127.0.0.1:1/"
	type ns = topic.NamespaceOptions
	history := ns{HistorySize: 5, HistoryTTL: time.Minute}
	for _, tt := range []struct {
		name    string
		backend BackendOptions // of the server that runs
		old     ns
		file    ns
		want    ns
		left    []string
	}{
		{name: "the backend is asked from now on", backend: BackendOptions{Subscribe: url, Publish: url, SubRefresh: url},
			file: ns{AllowSubscribeForClient: true, SubscribeProxyEnabled: true, PublishProxyEnabled: true, SubRefreshProxyEnabled: true},
			want: ns{AllowSubscribeForClient: true, SubscribeProxyEnabled: true, PublishProxyEnabled: true, SubRefreshProxyEnabled: true}},
		{name: "the backend is asked no more", backend: BackendOptions{Subscribe: url},
			old:  ns{AllowSubscribeForClient: true, SubscribeProxyEnabled: true},
			file: ns{}, want: ns{}},
		{name: "no URL to ask at about subscriptions", backend: BackendOptions{Publish: url},
			file: ns{AllowSubscribeForClient: true, AllowSubscribeForAnonymous: true, AllowPublishForClient: true, SubscribeProxyEnabled: true},
			want: ns{AllowPublishForClient: true},
			left: []string{"allow_subscribe_for_anonymous", "allow_subscribe_for_client", "subscribe_proxy_enabled"}},
		{name: "no URL to ask at about publications", backend: BackendOptions{Subscribe: url},
			file: ns{AllowPublishForClient: true, AllowPublishForSubscriber: true, AllowPublishForAnonymous: true, AllowSubscribeForClient: true, PublishProxyEnabled: true},
			want: ns{AllowSubscribeForClient: true},
			left: []string{"allow_publish_for_anonymous", "allow_publish_for_client", "allow_publish_for_subscriber", "publish_proxy_enabled"}},
		{name: "no URL to ask at about ends", backend: BackendOptions{Subscribe: url},
			file: ns{SubRefreshProxyEnabled: true, AllowSubscribeForClient: true},
			want: ns{AllowSubscribeForClient: true}, left: []string{"sub_refresh_proxy_enabled"}},
		{name: "taken away beside what waits for a URL",
			old:  ns{AllowPublishForClient: true, AllowSubscribeForAnonymous: true, AllowSubscribeForClient: true},
			file: ns{AllowSubscribeForClient: true, SubscribeProxyEnabled: true},
			want: ns{AllowSubscribeForClient: true}, left: []string{"subscribe_proxy_enabled"}},
		{name: "one that needs a history",
			old:  ns{AllowPublishForClient: true},
			file: ns{AllowRecovery: true, AllowPositioning: true, AllowSubscribeForClient: true, AllowPresenceForClient: true, HistorySize: 5, HistoryTTL: time.Minute},
			want: ns{AllowSubscribeForClient: true, AllowPresenceForClient: true},
			left: []string{"allow_positioning", "allow_recovery", "history_size", "history_ttl"}},
		{name: "one that has its history", old: history,
			file: ns{AllowRecovery: true, HistorySize: 5, HistoryTTL: time.Minute},
			want: ns{AllowRecovery: true, HistorySize: 5, HistoryTTL: time.Minute}},
		{name: "for other names",
			backend: BackendOptions{Subscribe: url},
			old:     ns{AllowPublishForClient: true, AllowSubscribeForClient: true, SubscribeProxyEnabled: true},
			file:    ns{AllowSubscribeForClient: true, AllowSubscribeForAnonymous: true, ChannelRegex: "^a"},
			want:    ns{AllowSubscribeForClient: true, SubscribeProxyEnabled: true},
			left:    []string{"allow_subscribe_for_anonymous", "channel_regex", "subscribe_proxy_enabled"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check := func(where string, got, want ns, left, wantLeft []string) {
				t.Helper()
				if len(changedNames(got, want)) > 0 {
					t.Errorf("%s: differs in %v: %+v", where, changedNames(got, want), got)
				}
				if !slices.Equal(left, wantLeft) {
					t.Errorf("%s: left %v, want %v", where, left, wantLeft)
				}
				if err := got.Check(); err != nil {
					t.Errorf("%s: %v", where, err)
				}
			}
			prefixed := func(prefix string) (keys []string) {
				for _, key := range tt.left {
					keys = append(keys, prefix+key)
				}
				return keys
			}
			before, after := DefaultOptions(), DefaultOptions()
			before.Backend = tt.backend
			after.Backend = tt.backend
			before.Topics.Default, after.Topics.Default = tt.old, tt.file
			next, left := merge(&before, &before, &after)
			check("default", next.Topics.Default, tt.want, left, prefixed("topics.default."))

			named := func(o ns) []ns { o.Name = "ns"; return []ns{o} }
			before.Topics.Default, after.Topics.Default = ns{}, ns{}
			before.Topics.Namespaces, after.Topics.Namespaces = named(tt.old), named(tt.file)
			next, left = merge(&before, &before, &after)
			check("namespace", next.Topics.Namespaces[0], named(tt.want)[0], left, prefixed("topics.namespaces[ns]."))
		})
	}
}

// TestMergeNewNamespace: one that comes whole, and one whose backend this server
// can't ask.
func TestMergeNewNamespace(t *testing.T) {
	before, after := DefaultOptions(), DefaultOptions()
	after.Backend.Subscribe, after.Backend.Publish, after.Backend.SubRefresh = "http://127.0.0.1:1/s", "http://127.0.0.1:1/p", "http://127.0.0.1:1/r"
	whole := topic.NamespaceOptions{
		Name: "whole", AllowSubscribeForClient: true, AllowPublishForClient: true, AllowRecovery: true, HistorySize: 5, HistoryTTL: time.Minute,
		ForceRecoveryMode: topic.RecoverCache, AutoCacheRecover: true, ChannelRegex: "^a",
	}
	asked := whole
	asked.Name, asked.SubscribeProxyEnabled, asked.PublishProxyEnabled, asked.SubRefreshProxyEnabled = "asked", true, true, true
	after.Topics.Namespaces = []topic.NamespaceOptions{whole, asked}
	next, _ := merge(&before, &before, &after)
	want := asked
	want.SubscribeProxyEnabled, want.PublishProxyEnabled, want.SubRefreshProxyEnabled = false, false, false
	want.AllowSubscribeForClient, want.AllowPublishForClient = false, false
	got := next.Topics.Namespaces
	if len(got) != 2 || len(changedNames(got[0], whole)) > 0 || len(changedNames(got[1], want)) > 0 {
		t.Errorf("got %+v", got)
	}
	if errs := next.Check(); len(errs) > 0 {
		t.Error(errs)
	}

	before.Backend = after.Backend
	if next, left := merge(&before, &before, &after); len(left) > 0 || len(changedNames(next.Topics.Namespaces[1], asked)) > 0 {
		t.Errorf("with the backend: left %v, got %+v", left, next.Topics.Namespaces[1])
	}
}

func changedNames(a, b topic.NamespaceOptions) []string {
	x, y := DefaultOptions(), DefaultOptions()
	x.Topics.Default, y.Topics.Default = a, b
	return changedKeys(&x, &y)
}

// TestMergeBoundOnAddresses: a bound that was there at the start may go and come
// back; one that was not needs a restart.
func TestMergeBoundOnAddresses(t *testing.T) {
	with := DefaultOptions()
	with.Limits.ConnectionsPerAddress, with.Limits.ConnectionsPerSubnet = 5, 50
	without := DefaultOptions()
	gone, left := merge(&with, &with, &without)
	if gone.Limits.ConnectionsPerAddress != 0 || gone.Limits.ConnectionsPerSubnet != 0 || len(left) > 0 {
		t.Errorf("taken away: %+v, left %v", gone.Limits, left)
	}
	back, left := merge(&with, gone, &with)
	if back.Limits.ConnectionsPerAddress != 5 || back.Limits.ConnectionsPerSubnet != 50 || len(left) > 0 {
		t.Errorf("back again: %+v, left %v", back.Limits, left)
	}
	never, left := merge(&without, &without, &with)
	if never.Limits.ConnectionsPerAddress != 0 || never.Limits.ConnectionsPerSubnet != 0 || len(left) != 2 {
		t.Errorf("never there: %+v, left %v", never.Limits, left)
	}
}
