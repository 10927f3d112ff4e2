package topic

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestNamespace(t *testing.T) {
	topics := newTopics(t, Options{
		MaxLength: 20,
		Default:   NamespaceOptions{ChannelRegex: `^[$#a-z0-9,:]*$`},
		Namespaces: []NamespaceOptions{
			{Name: "chat"},
			{Name: "a.b_c-D9"},
			{Name: "digits", ChannelRegex: `^[0-9]+$`},
			{Name: "inner", ChannelRegex: `x`},
		},
	})
	for _, tt := range []struct {
		name, topic string
		want        string // the namespace; "-": ErrUnknownTopic
	}{
		{"default", "news", ""},
		{"default, refused by its regex", "News", "-"},
		{"empty", "", "-"},
		{"longest", strings.Repeat("n", 20), ""},
		{"too long", strings.Repeat("n", 21), "-"},
		{"too long in bytes", "chat:" + strings.Repeat("é", 8), "-"},
		{"not ASCII", "chat:" + strings.Repeat("é", 7), "chat"},
		{"namespace", "chat:1", "chat"},
		{"namespace of all that a name may hold", "a.b_c-D9:1", "a.b_c-D9"},
		{"namespace and no more", "chat:", "chat"},
		{"namespace without its separator", "chat", ""},
		{"second separator", "chat:a:b", "chat"},
		{"unknown namespace", "nope:1", "-"},
		{"case counts", "Chat:1", "-"},
		{"start of a namespace", "cha:t", "-"},
		{"empty namespace", ":x", "-"},
		{"separator alone", ":", "-"},
		{"two separators", "::", "-"},
		{"private", "$news", ""},
		{"private mark alone", "$", ""},
		{"private in a namespace", "$chat:1", "chat"},
		{"private in an unknown namespace", "$nope:1", "-"},
		{"private in an empty namespace", "$:x", "-"},
		{"private mark twice", "$$chat:1", "-"},
		{"private mark behind the namespace", "chat:$1", "chat"},
		{"user", "#alice", ""},
		{"users", "news#42,43", ""},
		{"user in a namespace", "chat:#alice", "chat"},
		{"user with a separator", "#chat:alice", ""},
		{"regex", "digits:42", "digits"},
		{"regex refuses", "digits:4a", "-"},
		{"regex wants something", "digits:", "-"},
		{"regex is of what is behind the namespace", "$digits:42", "digits"},
		{"regex is not anchored of itself", "inner:axb", "inner"},
		{"regex does not look at the namespace", "inner:ab", "-"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ns, err := topics.Namespace(tt.topic)
			if tt.want == "-" {
				if !errors.Is(err, ErrUnknownTopic) || ns != nil {
					t.Fatalf("%q: %v, %v, want ErrUnknownTopic", tt.topic, ns, err)
				}
			} else if err != nil || ns.Name != tt.want {
				t.Fatalf("%q: %+v, %v, want namespace %q", tt.topic, ns, err, tt.want)
			}
			p := newFakePeer(topics, newFakeLoop(t, 0), 1)
			if got := topics.Subscribe(&p.s, tt.topic, SubscribeOptions{}); !errors.Is(got, err) {
				t.Errorf("subscribe says %v, Namespace %v", got, err)
			}
		})
	}
}

func TestNamespaceLengthDefault(t *testing.T) {
	topics := newTopics(t, Options{})
	if n := topics.MaxLength(); n != 255 {
		t.Errorf("a name has at most %d bytes", n)
	}
	if _, err := topics.Namespace(strings.Repeat("n", 255)); err != nil {
		t.Error(err)
	}
	if _, err := topics.Namespace(strings.Repeat("n", 256)); !errors.Is(err, ErrUnknownTopic) {
		t.Error(err)
	}
}

func TestNamespaceKeepsItsOptions(t *testing.T) {
	chat := NamespaceOptions{Name: "chat", AllowSubscribeForClient: true, AllowPublishForAnonymous: true}
	topics := newTopics(t, Options{Default: NamespaceOptions{AllowPublishForClient: true}, Namespaces: []NamespaceOptions{chat}})
	if ns, err := topics.Namespace("chat:1"); err != nil || !reflect.DeepEqual(ns.NamespaceOptions, chat) {
		t.Errorf("%+v, %v", ns, err)
	}
	if ns, err := topics.Namespace("1"); err != nil || !ns.AllowPublishForClient || ns.AllowSubscribeForClient {
		t.Errorf("%+v, %v", ns, err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    Options
		want string
	}{
		{"a namespace without a name", Options{Namespaces: []NamespaceOptions{{}}}, "empty or named twice"},
		{"a name twice", Options{Namespaces: []NamespaceOptions{{Name: "chat"}, {Name: "chat"}}}, `"chat" is empty or named twice`},
		{"a name of one letter", Options{Namespaces: []NamespaceOptions{{Name: "c"}}}, `name: "c"`},
		{"a name with a separator", Options{Namespaces: []NamespaceOptions{{Name: "a:b"}}}, `name: "a:b"`},
		{"a private name", Options{Namespaces: []NamespaceOptions{{Name: "$ab"}}}, `name: "$ab"`},
		{"a name with a line break", Options{Namespaces: []NamespaceOptions{{Name: "ab\n"}}}, "name: "},
		{"a bad regex", Options{Namespaces: []NamespaceOptions{{Name: "chat", ChannelRegex: "("}}}, "channel_regex"},
		{"a bad regex of the default", Options{Default: NamespaceOptions{ChannelRegex: "[z-a]"}}, "default: channel_regex"},
		{"a broker that does not start", Options{Broker: &recordingBroker{fail: errBroker}}, "start broker"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := New(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "topic: ") {
				t.Errorf("New: %v, want something of %q", err, tt.want)
			}
		})
	}
}
