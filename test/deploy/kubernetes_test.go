package deploy

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// manifests are what kubectl apply -k hands to Kubernetes.
type manifests struct {
	namespaces  []corev1.Namespace
	configs     map[string]corev1.ConfigMap
	secrets     map[string]corev1.Secret
	services    map[string]corev1.Service
	deployments map[string]appsv1.Deployment
	stateful    map[string]appsv1.StatefulSet
	budgets     []policyv1.PodDisruptionBudget
	policies    []networkingv1.NetworkPolicy
}

// build makes the manifests as the head of kustomization.yaml says, and decodes
// each strictly: a key that its kind does not have is an error.
func build(t *testing.T) *manifests {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(root, "deploy", "kubernetes"))); err != nil {
		t.Fatal(err)
	}
	var filled strings.Builder
	for line := range strings.Lines(read(t, dir, "secret.env.example")) {
		if name, ok := strings.CutSuffix(line, "=\n"); ok && !strings.HasPrefix(line, "#") {
			line = name + "=" + secret(name) + "\n"
		}
		filled.WriteString(line)
	}
	write(t, dir, "secret.env", filled.String())
	list := read(t, dir, "kustomization.yaml")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "kustomization.yaml" && !strings.Contains(list, "- "+e.Name()+"\n") && e.Name() != "secret.env.example" {
			t.Errorf("kustomization.yaml does not list %s", e.Name())
		}
	}

	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatalf("kustomize: %v", err)
	}
	m := &manifests{
		configs: map[string]corev1.ConfigMap{}, secrets: map[string]corev1.Secret{}, services: map[string]corev1.Service{},
		deployments: map[string]appsv1.Deployment{}, stateful: map[string]appsv1.StatefulSet{},
	}
	for _, r := range resources.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		if kind := r.GetKind(); kind != "Namespace" && r.GetNamespace() != "perch" {
			t.Errorf("%s %s is in the namespace %q", kind, r.GetName(), r.GetNamespace())
		}
		switch id := r.GetApiVersion() + " " + r.GetKind(); id {
		case "v1 Namespace":
			m.namespaces = append(m.namespaces, *strict[corev1.Namespace](t, text))
		case "v1 ConfigMap":
			m.configs[r.GetName()] = *strict[corev1.ConfigMap](t, text)
		case "v1 Secret":
			m.secrets[r.GetName()] = *strict[corev1.Secret](t, text)
		case "v1 Service":
			m.services[r.GetName()] = *strict[corev1.Service](t, text)
		case "apps/v1 Deployment":
			m.deployments[r.GetName()] = *strict[appsv1.Deployment](t, text)
		case "apps/v1 StatefulSet":
			m.stateful[r.GetName()] = *strict[appsv1.StatefulSet](t, text)
		case "policy/v1 PodDisruptionBudget":
			m.budgets = append(m.budgets, *strict[policyv1.PodDisruptionBudget](t, text))
		case "networking.k8s.io/v1 NetworkPolicy":
			m.policies = append(m.policies, *strict[networkingv1.NetworkPolicy](t, text))
		default:
			t.Errorf("nothing here knows %s", id)
		}
	}
	return m
}

func strict[T any](t *testing.T, text []byte) *T {
	t.Helper()
	v := new(T)
	if err := yaml.UnmarshalStrict(text, v); err != nil {
		t.Errorf("%v in\n%s", err, text)
	}
	return v
}

// pods are the templates, by the name of what makes them.
func (m *manifests) pods() map[string]corev1.PodTemplateSpec {
	out := map[string]corev1.PodTemplateSpec{}
	for name, d := range m.deployments {
		out[name] = d.Spec.Template
	}
	for name, s := range m.stateful {
		out[name] = s.Spec.Template
	}
	return out
}

// container is the only one of a pod.
func container(t *testing.T, pod corev1.PodTemplateSpec) corev1.Container {
	t.Helper()
	if len(pod.Spec.Containers) != 1 {
		t.Fatalf("%d containers", len(pod.Spec.Containers))
	}
	return pod.Spec.Containers[0]
}

// env is the environment of a pod of that name, as Kubernetes would make it.
func (m *manifests) env(t *testing.T, pod string, c corev1.Container) environment {
	t.Helper()
	out := environment{}
	for _, e := range c.Env {
		switch from := e.ValueFrom; {
		case from == nil:
			v := e.Value
			for name, earlier := range out {
				v = strings.ReplaceAll(v, "$("+name+")", earlier)
			}
			if strings.Contains(v, "$(") {
				t.Errorf("%s: %s names what is not there", e.Name, v)
			}
			out[e.Name] = v
		case from.FieldRef != nil && from.FieldRef.FieldPath == "metadata.name":
			out[e.Name] = pod
		case from.SecretKeyRef != nil:
			v, ok := m.secrets[from.SecretKeyRef.Name].Data[from.SecretKeyRef.Key]
			if !ok {
				t.Errorf("%s: no secret %s with %s", e.Name, from.SecretKeyRef.Name, from.SecretKeyRef.Key)
			}
			out[e.Name] = string(v)
		default:
			t.Errorf("%s: nothing here knows where it comes from", e.Name)
		}
	}
	return out
}

// file is the text of one that a pod has from a ConfigMap.
func (m *manifests) file(t *testing.T, pod corev1.PodTemplateSpec, name string) string {
	t.Helper()
	for _, mount := range container(t, pod).VolumeMounts {
		for _, v := range pod.Spec.Volumes {
			if v.Name == mount.Name && v.ConfigMap != nil && mount.MountPath == path.Dir(name) {
				if text, ok := m.configs[v.ConfigMap.Name].Data[path.Base(name)]; ok {
					return text
				}
			}
		}
	}
	t.Fatalf("no volume brings %s", name)
	return ""
}

// TestKubernetesRefers: what selects finds its pods, and ports have the names
// that others call them by.
func TestKubernetesRefers(t *testing.T) {
	m := build(t)
	if len(m.namespaces) != 1 || m.namespaces[0].Name != "perch" {
		t.Errorf("namespaces: %v", m.namespaces)
	}
	for name, d := range m.deployments {
		if !matches(t, d.Spec.Selector, d.Spec.Template.Labels) {
			t.Errorf("the deployment %s does not select its pods", name)
		}
	}
	for name, s := range m.stateful {
		if !matches(t, s.Spec.Selector, s.Spec.Template.Labels) {
			t.Errorf("the set %s does not select its pods", name)
		}
		if service := m.services[s.Spec.ServiceName]; service.Spec.ClusterIP != corev1.ClusterIPNone || !service.Spec.PublishNotReadyAddresses {
			t.Errorf("%s gives no names to pods that are not ready", s.Spec.ServiceName)
		}
	}
	// selected is the one pod that a selector finds.
	selected := func(what string, selector *v1.LabelSelector) corev1.PodTemplateSpec {
		t.Helper()
		var found []corev1.PodTemplateSpec
		for _, pod := range m.pods() {
			if matches(t, selector, pod.Labels) {
				found = append(found, pod)
			}
		}
		if len(found) != 1 {
			t.Fatalf("%s selects %d kinds of pods", what, len(found))
		}
		return found[0]
	}
	hasPort := func(what string, pod corev1.PodTemplateSpec, port intstr.IntOrString) {
		t.Helper()
		for _, p := range container(t, pod).Ports {
			if port.Type == intstr.String && p.Name == port.StrVal {
				return
			}
		}
		t.Errorf("%s: the pod has no port %s", what, port.String())
	}
	for name, s := range m.services {
		pod := selected("service "+name, &v1.LabelSelector{MatchLabels: s.Spec.Selector})
		for _, p := range s.Spec.Ports {
			hasPort("service "+name, pod, p.TargetPort)
		}
	}
	budgets := map[string]bool{}
	for _, b := range m.budgets {
		pod := selected("budget "+b.Name, b.Spec.Selector)
		if b.Spec.MaxUnavailable == nil || b.Spec.MaxUnavailable.IntValue() != 1 {
			t.Errorf("budget %s: %v may be gone", b.Name, b.Spec.MaxUnavailable)
		}
		budgets[container(t, pod).Name] = true
	}
	policies := map[string]bool{}
	for _, p := range m.policies {
		pod := selected("policy "+p.Name, &p.Spec.PodSelector)
		policies[container(t, pod).Name] = true
		for _, rule := range p.Spec.Ingress {
			if len(rule.Ports) == 0 {
				t.Errorf("policy %s opens every port", p.Name)
			}
			for _, at := range rule.Ports {
				hasPort("policy "+p.Name, pod, *at.Port)
				if len(rule.From) == 0 && at.Port.StrVal != "public" {
					t.Errorf("policy %s opens %s to everybody", p.Name, at.Port)
				}
			}
		}
	}
	for name, pod := range m.pods() {
		c := container(t, pod)
		if !budgets[c.Name] || !policies[c.Name] {
			t.Errorf("%s has no budget or no policy", name)
		}
		for _, probe := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if probe != nil {
				hasPort("probe of "+name, pod, probe.HTTPGet.Port)
			}
		}
		for _, s := range pod.Spec.TopologySpreadConstraints {
			if !matches(t, s.LabelSelector, pod.Labels) {
				t.Errorf("%s is not spread by its own labels", name)
			}
		}
	}
}

func matches(t *testing.T, s *v1.LabelSelector, of map[string]string) bool {
	t.Helper()
	selector, err := v1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return !selector.Empty() && selector.Matches(labels.Set(of))
}

// safeSysctls are those that a pod may set without anybody's leave.
var safeSysctls = []string{
	"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
	"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
	"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes",
	"net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}

// TestKubernetesHardened: pods fit the profile "restricted", and somewhat less.
func TestKubernetesHardened(t *testing.T) {
	for name, pod := range build(t).pods() {
		c, ps := container(t, pod), pod.Spec.SecurityContext
		s := c.SecurityContext
		for what, ok := range map[string]bool{
			"may run as root":                   ps.RunAsNonRoot != nil && *ps.RunAsNonRoot && *ps.RunAsUser > 0,
			"has all system calls":              ps.SeccompProfile != nil && ps.SeccompProfile.Type == corev1.SeccompProfileTypeRuntimeDefault,
			"may gain privileges":               s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation,
			"is privileged":                     s.Privileged == nil,
			"may write to its image":            s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem,
			"has capabilities":                  slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) && len(s.Capabilities.Add) == 0,
			"has a token of the cluster's API":  pod.Spec.AutomountServiceAccountToken != nil && !*pod.Spec.AutomountServiceAccountToken,
			"shares the machine's network":      !pod.Spec.HostNetwork && !pod.Spec.HostPID && !pod.Spec.HostIPC,
			"has no bound on its memory":        !c.Resources.Limits.Memory().IsZero(),
			"has a memory limit over its claim": c.Resources.Limits.Memory().Equal(*c.Resources.Requests.Memory()),
			"has no readiness or liveness":      c.ReadinessProbe != nil && c.LivenessProbe != nil,
		} {
			if !ok {
				t.Errorf("%s %s", name, what)
			}
		}
		for _, sysctl := range ps.Sysctls {
			if !slices.Contains(safeSysctls, sysctl.Name) {
				t.Errorf("%s: %s is no safe sysctl", name, sysctl.Name)
			}
		}
	}
}

// TestKubernetesPerch: the pods are as the server wants them.
func TestKubernetesPerch(t *testing.T) {
	m := build(t)
	d := m.deployments["perch"]
	pod := d.Spec.Template
	c := container(t, pod)
	env := m.env(t, "perch-abc", c)
	config := &settings{}
	text := m.file(t, pod, env["PERCH_CONFIG"])
	if err := yaml.Unmarshal([]byte(text), config); err != nil {
		t.Fatal(err)
	}

	delay, all := config.drain(t)
	if got := time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second; got <= all {
		t.Errorf("a pod has %s to end, its drain takes up to %s", got, all)
	}
	if r := c.ReadinessProbe; time.Duration(r.PeriodSeconds*r.FailureThreshold)*time.Second >= delay {
		t.Errorf("the drain goes on before readiness is noticed: %d × %d s, delay %s", r.FailureThreshold, r.PeriodSeconds, delay)
	}
	if u := d.Spec.Strategy.RollingUpdate; u.MaxUnavailable.IntValue() != 0 || u.MaxSurge.IntValue() != 1 || d.Spec.MinReadySeconds == 0 {
		t.Errorf("nodes are not replaced one after another: %v", d.Spec.Strategy)
	}
	if !strings.Contains(read(t, root, "Dockerfile"), "\nUSER 65532:65532\n") || *pod.Spec.SecurityContext.RunAsUser != 65532 {
		t.Errorf("the pod does not run as the image's user")
	}
	if !slices.Equal(c.Args, []string{"serve"}) || len(c.Command) > 0 {
		t.Errorf("it runs %v %v", c.Command, c.Args)
	}
	image := imageEnv(t)
	if !slices.ContainsFunc(c.VolumeMounts, func(v corev1.VolumeMount) bool { return v.MountPath == image["PERCH_DATA_DIR"] && !v.ReadOnly }) {
		t.Errorf("nothing that can be written to is mounted on %s", image["PERCH_DATA_DIR"])
	}
	for name, addr := range map[string]string{"public": image["PERCH_LISTEN"], "admin": config.Admin} {
		if !slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == name && int(p.ContainerPort) == port(t, addr) }) {
			t.Errorf("the port %s is not that of %s", name, addr)
		}
	}
	// Where nodes look for NATS, there is a service.
	host, at := split(t, strings.TrimPrefix(config.NATS.URL, "nats://"))
	if s, ok := m.services[host]; !ok || int(s.Spec.Ports[0].Port) != at {
		t.Errorf("no service is %s", config.NATS.URL)
	}
	if set := m.stateful["perch-nats"]; config.NATS.Replicas != int(*set.Spec.Replicas) {
		t.Errorf("%d replicas on %d servers", config.NATS.Replicas, *set.Spec.Replicas)
	}
}

// TestKubernetesNATS: the set is as the servers want it.
func TestKubernetesNATS(t *testing.T) {
	m := build(t)
	set := m.stateful["perch-nats"]
	pod := set.Spec.Template
	c := container(t, pod)
	o := natsOptions(t, m.file(t, pod, c.Command[len(c.Command)-1]), m.env(t, "perch-nats-0", c))

	if c.Image != natsImage(t) {
		t.Errorf("the image is %s, Perch is built with %s", c.Image, natsImage(t))
	}
	var want, got []string
	for i := range *set.Spec.Replicas {
		want = append(want, "nats-route://"+set.Name+"-"+string('0'+i)+"."+set.Spec.ServiceName+":6222")
	}
	for _, r := range o.Routes {
		r.User = nil
		got = append(got, r.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("routes to %v, the pods are %v", got, want)
	}
	for name, at := range map[string]int{"client": o.Port, "cluster": o.Cluster.Port, "monitor": o.HTTPPort} {
		if !slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == name && int(p.ContainerPort) == at }) {
			t.Errorf("the port %s is not %d", name, at)
		}
	}
	if grace := time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second; grace <= o.LameDuckDuration+stopGrace {
		t.Errorf("a pod has %s to end, its clients are sent away over %s", grace, o.LameDuckDuration)
	}
	if hook := c.Lifecycle.PreStop.Exec.Command; !slices.Equal(hook, []string{"nats-server", "-sl=ldm=" + o.PidFile}) {
		t.Errorf("the hook is %v, the process's id in %s", hook, o.PidFile)
	}
	mounted := func(dir string) bool {
		return slices.ContainsFunc(c.VolumeMounts, func(v corev1.VolumeMount) bool { return v.MountPath == dir && !v.ReadOnly })
	}
	if !mounted(o.StoreDir) || !mounted(path.Dir(o.PidFile)) {
		t.Errorf("%s or %s can't be written to", o.StoreDir, o.PidFile)
	}
	if size := set.Spec.VolumeClaimTemplates[0].Spec.Resources.Requests.Storage(); size.Value() <= o.JetStreamMaxStore {
		t.Errorf("streams may take %d bytes of a volume of %s", o.JetStreamMaxStore, size)
	}
}

// TestKubernetesRuns starts what the manifests start, on this machine: three
// servers of NATS and a node, each with the environment and the files of its pod.
// Probes are answered, and the node is in its account.
func TestKubernetesRuns(t *testing.T) {
	m := build(t)
	set := m.stateful["perch-nats"]
	n := container(t, set.Spec.Template)
	text := m.file(t, set.Spec.Template, n.Command[len(n.Command)-1])
	all := natsServers(t, natsOptions(t, text, m.env(t, "perch-nats-0", n)), natsOptions(t, text, m.env(t, "perch-nats-1", n)),
		natsOptions(t, text, m.env(t, "perch-nats-2", n)))
	for _, probe := range []*corev1.Probe{n.StartupProbe, n.ReadinessProbe, n.LivenessProbe} {
		healthy(t, all, probe.HTTPGet.Path)
	}

	pod := m.deployments["perch"].Spec.Template
	c := container(t, pod)
	env := imageEnv(t).with(m.env(t, "perch-abc", c))
	env["PERCH_CONFIG"] = write(t, t.TempDir(), "perch.yaml", m.file(t, pod, env["PERCH_CONFIG"]))
	checkConfig(t, env)
	env["PERCH_NATS_URL"] = urls(all)
	p := serve(t, env)
	p.answers(t, c.LivenessProbe.HTTPGet.Path)
	p.answers(t, c.ReadinessProbe.HTTPGet.Path)
	connected(t, all, "perch-abc", "PERCH")
	_, js := jetStream(t, urls(all), natsUser(env))
	store(t, js, int(*set.Spec.Replicas))
}
