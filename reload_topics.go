package perch

import (
	"reflect"
	"slices"
	"strings"

	"perch/topic"
)

// A namespace's permissions hang together: where the backend is asked, it stands
// in the place of allow_subscribe_… and allow_publish_…, so one without the other
// would open what nobody has asked to open. What a reload can't take over whole,
// it therefore takes over to the closed side: what is forbidden now is forbidden
// at once, what is allowed now waits for a restart.

// mergeTopics are the rules of old with what can be taken over of o: new
// namespaces, permissions, and whether the backend is asked for them.
func mergeTopics(old, o *Options) (def topic.NamespaceOptions, list []topic.NamespaceOptions) {
	for _, ns := range old.Topics.Namespaces {
		if i := namespaceAt(o.Topics.Namespaces, ns.Name); i >= 0 {
			ns = permitted(&old.Backend, ns, o.Topics.Namespaces[i])
		}
		list = append(list, ns)
	}
	for _, ns := range o.Topics.Namespaces {
		if namespaceAt(old.Topics.Namespaces, ns.Name) < 0 {
			list = append(list, answerable(&old.Backend, topic.NamespaceOptions{}, ns))
		}
	}
	return permitted(&old.Backend, old.Topics.Default, o.Topics.Default), list
}

func namespaceAt(list []topic.NamespaceOptions, name string) int {
	return slices.IndexFunc(list, func(ns topic.NamespaceOptions) bool { return ns.Name == name })
}

// permitted is ns with the permissions of wanted: the switches that begin with
// allow, and those of the backend b that the server runs with.
func permitted(b *BackendOptions, ns, wanted topic.NamespaceOptions) topic.NamespaceOptions {
	wanted = answerable(b, ns, wanted)
	if wanted.ChannelRegex != ns.ChannelRegex {
		// What is allowed is meant for other names.
		allowNoMore(&wanted, &ns, "allow_")
		wanted.SubscribeProxyEnabled = wanted.SubscribeProxyEnabled || ns.SubscribeProxyEnabled
		wanted.PublishProxyEnabled = wanted.PublishProxyEnabled || ns.PublishProxyEnabled
	}
	ns.SubscribeProxyEnabled = wanted.SubscribeProxyEnabled
	ns.PublishProxyEnabled = wanted.PublishProxyEnabled
	ns.SubRefreshProxyEnabled = wanted.SubRefreshProxyEnabled
	allowNoMore(&ns, &wanted, "allow_")
	dst, src := reflect.ValueOf(&ns).Elem(), reflect.ValueOf(wanted)
	for _, i := range switches("allow_") {
		if !src.Field(i).Bool() || dst.Field(i).Bool() {
			continue
		}
		dst.Field(i).SetBool(true)
		// One that needs what is left as it is (a history) doesn't keep the others away.
		if ns.Check() != nil {
			dst.Field(i).SetBool(false)
		}
	}
	return ns
}

// answerable is wanted without the questions that the backend b has no URL for. As
// they can't be asked, what they stand in the place of is allowed no further than
// it is in ns.
func answerable(b *BackendOptions, ns, wanted topic.NamespaceOptions) topic.NamespaceOptions {
	if wanted.SubscribeProxyEnabled && b.Subscribe == "" {
		wanted.SubscribeProxyEnabled = false
		allowNoMore(&wanted, &ns, "allow_subscribe_")
	}
	if wanted.PublishProxyEnabled && b.Publish == "" {
		wanted.PublishProxyEnabled = false
		allowNoMore(&wanted, &ns, "allow_publish_")
	}
	if wanted.SubRefreshProxyEnabled && b.SubRefresh == "" {
		wanted.SubRefreshProxyEnabled = false
	}
	return wanted
}

// allowNoMore turns off the switches of ns that begin with prefix, save those that
// are on in other.
func allowNoMore(ns, other *topic.NamespaceOptions, prefix string) {
	dst, src := reflect.ValueOf(ns).Elem(), reflect.ValueOf(other).Elem()
	for _, i := range switches(prefix) {
		dst.Field(i).SetBool(dst.Field(i).Bool() && src.Field(i).Bool())
	}
}

// switches are the fields of a namespace that are on or off and whose key begins
// with prefix.
func switches(prefix string) (fields []int) {
	t := reflect.TypeFor[topic.NamespaceOptions]()
	for i := range t.NumField() {
		if f := t.Field(i); f.Type.Kind() == reflect.Bool && strings.HasPrefix(f.Tag.Get("koanf"), prefix) {
			fields = append(fields, i)
		}
	}
	return fields
}
