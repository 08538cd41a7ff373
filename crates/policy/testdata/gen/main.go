// Writes stored Kubernetes objects for the tests of crates/policy, made by Kubernetes' own
// types and serializer, so that the tests judge the bytes that an API server would store:
//
//	go run -mod=mod . ../1.37
//	go run -mod=mod -modfile=go-1.28.mod . ../1.28
//
// objects.txt has one object a line: name, tab, base64 of the stored value.
// status-fields.txt has one field of one kind's status a line: API version, kind, the field's
// JSON name, its protobuf number, base64 of an object without it and of the same with it.
// Nothing in the output depends on the time or the machine.
package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
)

var (
	codec = protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	day   = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func at(seconds int) metav1.Time {
	return metav1.NewTime(day.Add(time.Duration(seconds) * time.Second))
}

func stored(object runtime.Object) string {
	kinds, _, err := scheme.Scheme.ObjectKinds(object)
	check(err)
	object.GetObjectKind().SetGroupVersionKind(kinds[0])
	var buffer bytes.Buffer
	check(codec.Encode(object, &buffer))
	return base64.StdEncoding.EncodeToString(buffer.Bytes())
}

func main() {
	out := os.Args[1]
	check(os.MkdirAll(out, 0o755))
	check(os.WriteFile(filepath.Join(out, "objects.txt"), objects(), 0o644))
	check(os.WriteFile(filepath.Join(out, "status-fields.txt"), statusFields(), 0o644))
}

// ---- every field of every status ----

func statusFields() []byte {
	var kinds []schema.GroupVersionKind
	for kind := range scheme.Scheme.AllKnownTypes() {
		kinds = append(kinds, kind)
	}
	sort.Slice(kinds, func(i, j int) bool { return kinds[i].String() < kinds[j].String() })
	var lines bytes.Buffer
	for _, kind := range kinds {
		object, err := scheme.Scheme.New(kind)
		check(err)
		value := reflect.ValueOf(object).Elem()
		status := value.FieldByName("Status")
		if status.IsValid() && status.Kind() == reflect.Pointer {
			status.Set(reflect.New(status.Type().Elem()))
			status = status.Elem()
		}
		meta := value.FieldByName("ObjectMeta")
		// Lists, options and reviews are not stored.
		if kind.Version == "__internal" || !meta.IsValid() || !status.IsValid() || status.Kind() != reflect.Struct ||
			strings.HasSuffix(kind.Kind, "Review") || kind.Kind == "Scale" || kind.Kind == "PodStatusResult" || kind.Kind == "TokenRequest" || kind.Kind == "Eviction" && kind.Group == "policy" {
			continue
		}
		meta.Set(reflect.ValueOf(metav1.ObjectMeta{Name: "x", Namespace: "ns", UID: "u"}))
		var before bytes.Buffer
		object.GetObjectKind().SetGroupVersionKind(kind)
		if err := codec.Encode(object, &before); err != nil {
			continue
		}
		old := base64.StdEncoding.EncodeToString(before.Bytes())
		for i := 0; i < status.NumField(); i++ {
			field := status.Type().Field(i)
			tag := strings.Split(field.Tag.Get("protobuf"), ",")
			name := strings.Split(field.Tag.Get("json"), ",")[0]
			if len(tag) < 2 {
				continue
			}
			zero := reflect.New(field.Type).Elem()
			fill(status.Field(i), 0)
			var after bytes.Buffer
			check(codec.Encode(object, &after))
			new := base64.StdEncoding.EncodeToString(after.Bytes())
			status.Field(i).Set(zero)
			fmt.Fprintf(&lines, "%s\t%s\t%s\t%s\t%s\t%s\n", kind.GroupVersion(), kind.Kind, name, tag[1], old, new)
		}
	}
	return lines.Bytes()
}

// fill sets a value to something that is not its zero.
func fill(v reflect.Value, depth int) {
	switch v.Interface().(type) {
	case metav1.Time:
		v.Set(reflect.ValueOf(at(1)))
		return
	case metav1.MicroTime:
		v.Set(reflect.ValueOf(metav1.NewMicroTime(day)))
		return
	case resource.Quantity:
		v.Set(reflect.ValueOf(resource.MustParse("1")))
		return
	}
	if depth > 4 {
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth+1)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, depth+1)
		fill(value, depth+1)
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for i := 0; i < v.NumField(); i++ {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), depth+1)
			}
		}
	}
}

// ---- objects as controllers, kubelets and people write them ----

type set struct{ lines bytes.Buffer }

func (s *set) add(name string, object runtime.Object) {
	fmt.Fprintf(&s.lines, "%s\t%s\n", name, stored(object))
}

func managed(manager, subresource string, seconds int) metav1.ManagedFieldsEntry {
	when := at(seconds)
	return metav1.ManagedFieldsEntry{
		Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", Time: &when,
		FieldsType: "FieldsV1", Subresource: subresource,
		FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:metadata":{"f:generateName":{},"f:labels":{".":{},"f:app":{},"f:pod-template-hash":{}},"f:ownerReferences":{".":{},"k:{\"uid\":\"11111111-2222-3333-4444-555555555555\"}":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:imagePullPolicy":{},"f:name":{},"f:resources":{},"f:terminationMessagePath":{},"f:terminationMessagePolicy":{}}},"f:dnsPolicy":{},"f:enableServiceLinks":{},"f:restartPolicy":{},"f:schedulerName":{},"f:securityContext":{},"f:terminationGracePeriodSeconds":{}}}`)},
	}
}

func meta(name string, owner *metav1.OwnerReference) metav1.ObjectMeta {
	m := metav1.ObjectMeta{
		Name: name, Namespace: "default", UID: "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", Generation: 1,
		CreationTimestamp: at(0),
		Labels:            map[string]string{"app": "web", "pod-template-hash": "5d4f8c7b9"},
		Annotations:       map[string]string{"example.com/team": "blue", "example.com/note": strings.Repeat("n", 200)},
		ManagedFields:     []metav1.ManagedFieldsEntry{managed("kube-controller-manager", "", 0)},
	}
	if owner != nil {
		m.OwnerReferences = []metav1.OwnerReference{*owner}
	}
	return m
}

func owner(apiVersion, kind string) *metav1.OwnerReference {
	yes := true
	return &metav1.OwnerReference{APIVersion: apiVersion, Kind: kind, Name: "owner",
		UID: "11111111-2222-3333-4444-555555555555", Controller: &yes, BlockOwnerDeletion: &yes}
}

// pod is about 4 KiB long when stored with its status.
func pod(owner *metav1.OwnerReference) *corev1.Pod {
	seconds, share := int64(3607), int32(420)
	grace := int64(30)
	env := []corev1.EnvVar{}
	for _, name := range []string{"DATABASE_URL", "LOG_LEVEL", "CACHE_SIZE", "REGION"} {
		env = append(env, corev1.EnvVar{Name: name, Value: strings.Repeat("v", 280)})
	}
	priority, links := int32(0), true
	preemption := corev1.PreemptLowerPriority
	return &corev1.Pod{
		ObjectMeta: meta("web-5d4f8c7b9-abcde", owner),
		Spec: corev1.PodSpec{
			Volumes: []corev1.Volume{
				{Name: "kube-api-access-abcde", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
					DefaultMode: &share,
					Sources: []corev1.VolumeProjection{
						{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: &seconds, Path: "token"}},
						{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"},
							Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
					}}}},
				{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
				{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
					LocalObjectReference: corev1.LocalObjectReference{Name: "web"}, DefaultMode: &share}}},
			},
			Containers: []corev1.Container{{
				Name: "c", Image: "registry.example/web@sha256:" + strings.Repeat("0", 64), Env: env,
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")},
					Limits:   corev1.ResourceList{"memory": resource.MustParse("256Mi")}},
				VolumeMounts: []corev1.VolumeMount{{Name: "kube-api-access-abcde", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"},
					{Name: "tmp", MountPath: "/tmp"}, {Name: "config", MountPath: "/etc/web"}},
				ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}},
					PeriodSeconds: 10, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3},
				TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: "File", ImagePullPolicy: "IfNotPresent",
			}},
			RestartPolicy: "Always", TerminationGracePeriodSeconds: &grace, DNSPolicy: "ClusterFirst",
			ServiceAccountName: "default", DeprecatedServiceAccount: "default", SecurityContext: &corev1.PodSecurityContext{},
			SchedulerName: "default-scheduler", Priority: &priority, EnableServiceLinks: &links, PreemptionPolicy: &preemption,
			Tolerations: []corev1.Toleration{
				{Key: "node.kubernetes.io/not-ready", Operator: "Exists", Effect: "NoExecute", TolerationSeconds: &seconds},
				{Key: "node.kubernetes.io/unreachable", Operator: "Exists", Effect: "NoExecute", TolerationSeconds: &seconds}},
		},
		Status: corev1.PodStatus{Phase: "Pending", QOSClass: "Burstable"},
	}
}

func condition(kind corev1.PodConditionType, status corev1.ConditionStatus, seconds int) corev1.PodCondition {
	return corev1.PodCondition{Type: kind, Status: status, LastTransitionTime: at(seconds)}
}

func bound(p *corev1.Pod) *corev1.Pod {
	p = p.DeepCopy()
	p.Spec.NodeName = "node-1"
	p.Status.Conditions = []corev1.PodCondition{condition("PodScheduled", "True", 1)}
	return p
}

// progressed is what a kubelet reports on the way to ready.
func progressed(p *corev1.Pod, phase corev1.PodPhase, ready corev1.ConditionStatus, seconds int) *corev1.Pod {
	p = bound(p)
	start := at(2)
	p.Status.Phase = phase
	p.Status.HostIP, p.Status.PodIP = "10.0.0.1", "10.1.0.7"
	p.Status.PodIPs = []corev1.PodIP{{IP: "10.1.0.7"}}
	p.Status.StartTime = &start
	p.Status.Conditions = append(p.Status.Conditions, condition("Initialized", "True", 2),
		condition("Ready", ready, seconds), condition("ContainersReady", ready, seconds))
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", Image: p.Spec.Containers[0].Image, Ready: ready == "True",
		ImageID: "registry.example/web@sha256:" + strings.Repeat("0", 64), ContainerID: "containerd://" + strings.Repeat("1", 64),
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at(3)}}}}
	p.ManagedFields = append(p.ManagedFields, managed("kubelet", "status", seconds))
	return p
}

// fewVariants is a pod's life. The pod is made smaller, so that the file stays small.
func fewVariants(s *set, name string, p *corev1.Pod) {
	p.Spec.Containers[0].Env, p.Spec.Containers[0].ReadinessProbe, p.Spec.Tolerations = nil, nil, nil
	delete(p.Annotations, "example.com/note")
	small := func(p *corev1.Pod) *corev1.Pod {
		p = p.DeepCopy()
		for i := range p.ManagedFields {
			p.ManagedFields[i].FieldsV1.Raw = []byte(`{"f:metadata":{}}`)
		}
		return p
	}
	s.add(name, small(p))
	s.add(name+"+bound", small(bound(p)))
	s.add(name+"+running", small(progressed(p, "Running", "False", 4)))
	s.add(name+"+ready", small(progressed(p, "Running", "True", 5)))
	s.add(name+"+failed", small(progressed(p, "Failed", "False", 6)))
}

func podVariants(s *set, name string, p *corev1.Pod) {
	s.add(name, p)
	s.add(name+"+bound", bound(p))
	running := progressed(p, "Running", "False", 4)
	s.add(name+"+running", running)
	s.add(name+"+ready", progressed(p, "Running", "True", 5))
	s.add(name+"+succeeded", progressed(p, "Succeeded", "False", 6))
	s.add(name+"+failed", progressed(p, "Failed", "False", 6))
	s.add(name+"+failed-later", progressed(p, "Failed", "False", 7))
	with := func(suffix string, change func(*corev1.Pod)) {
		changed := running.DeepCopy()
		change(changed)
		s.add(name+"+running"+suffix, changed)
	}
	with("+deleting", func(p *corev1.Pod) {
		when, grace := at(9), int64(30)
		p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &when, &grace
	})
	with("+labelled", func(p *corev1.Pod) { p.Labels["app"] = "other" })
	with("+managed", func(p *corev1.Pod) { p.ManagedFields = append(p.ManagedFields, managed("someone", "", 8)) })
	with("+adopted", func(p *corev1.Pod) { p.OwnerReferences = []metav1.OwnerReference{*owner("apps/v1", "StatefulSet")} })
	with("+orphaned", func(p *corev1.Pod) { p.OwnerReferences = nil })
	with("+finalizer", func(p *corev1.Pod) { p.Finalizers = append(p.Finalizers, "example.com/guard") })
	with("+disrupted", func(p *corev1.Pod) {
		p.Status.Conditions = append(p.Status.Conditions, condition("DisruptionTarget", "True", 9))
	})
	with("+gate", func(p *corev1.Pod) {
		p.Status.Conditions = append(p.Status.Conditions, condition("example.com/gate", "True", 9))
	})
	with("+claimed", func(p *corev1.Pod) {
		claim := "claim"
		p.Status.ResourceClaimStatuses = []corev1.PodResourceClaimStatus{{Name: "gpu", ResourceClaimName: &claim}}
	})
}

func objects() []byte {
	s := &set{}
	replicaSet := owner("apps/v1", "ReplicaSet")
	podVariants(s, "pod-of-replicaset", pod(replicaSet))
	fewVariants(s, "pod-of-daemonset", pod(owner("apps/v1", "DaemonSet")))
	fewVariants(s, "pod-of-statefulset", pod(owner("apps/v1", "StatefulSet")))
	ofJob := pod(owner("batch/v1", "Job"))
	ofJob.Finalizers = []string{"batch.kubernetes.io/job-tracking"}
	ofJob.Spec.RestartPolicy = "Never"
	fewVariants(s, "pod-of-job", ofJob)
	fewVariants(s, "pod-bare", pod(nil))
	mirror := pod(owner("v1", "Node"))
	mirror.Annotations["kubernetes.io/config.mirror"] = "x"
	fewVariants(s, "pod-mirror", mirror)
	fewVariants(s, "pod-of-other-replicaset", pod(owner("example.com/v1", "ReplicaSet")))

	claiming := func(name string, change func(*corev1.Pod)) {
		p := pod(replicaSet)
		change(p)
		fewVariants(s, name, p)
	}
	volume := func(source corev1.VolumeSource) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "data", VolumeSource: source})
		}
	}
	claiming("pod-with-pvc", volume(corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}))
	claiming("pod-with-ephemeral-volume", volume(corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{}}}))
	claiming("pod-with-attached-disk", volume(corev1.VolumeSource{ISCSI: &corev1.ISCSIVolumeSource{TargetPortal: "10.0.0.1", IQN: "iqn"}}))
	claiming("pod-with-csi-inline", volume(corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "secrets.example"}}))
	claiming("pod-with-device", func(p *corev1.Pod) { p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu"}} })

	// Pods as CI systems make them: what the rules look at.
	ci := func(name string, o *metav1.OwnerReference, labels map[string]string, finalizers ...string) {
		p := pod(o)
		p.Labels, p.Finalizers, p.Spec.RestartPolicy = labels, finalizers, "Never"
		fewVariants(s, name, p)
	}
	ci("pod-of-taskrun", owner("tekton.dev/v1", "TaskRun"), map[string]string{"app.kubernetes.io/managed-by": "tekton-pipelines", "tekton.dev/taskRun": "build"})
	ci("pod-of-workflow", owner("argoproj.io/v1alpha1", "Workflow"), map[string]string{"workflows.argoproj.io/workflow": "build", "workflows.argoproj.io/completed": "false"}, "workflows.argoproj.io/status")
	ci("pod-of-runner", owner("actions.github.com/v1alpha1", "EphemeralRunner"), map[string]string{"actions-ephemeral-runner": "True", "actions.github.com/scale-set-name": "arc"})
	ci("pod-of-gitlab", nil, map[string]string{"job.runner.gitlab.com/pod": "runner-1-project-1-concurrent-0", "project.runner.gitlab.com/id": "1"})
	ci("pod-of-jenkins", nil, map[string]string{"jenkins/label": "linux", "jenkins/label-digest": "0123"})

	one := int32(1)
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: pod(nil).Spec}
	deployment := &appsv1.Deployment{ObjectMeta: meta("web", nil),
		Spec: appsv1.DeploymentSpec{Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, Template: template}}
	s.add("deployment", deployment)
	progress := func(change func(*appsv1.Deployment)) *appsv1.Deployment {
		d := deployment.DeepCopy()
		d.Annotations["deployment.kubernetes.io/revision"] = "1"
		d.Status = appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: 1, UnavailableReplicas: 1,
			Conditions: []appsv1.DeploymentCondition{{Type: "Progressing", Status: "True", LastUpdateTime: at(1), LastTransitionTime: at(1)}}}
		d.ManagedFields = append(d.ManagedFields, managed("kube-controller-manager", "status", 1))
		change(d)
		return d
	}
	s.add("deployment+status", progress(func(*appsv1.Deployment) {}))
	s.add("deployment+status+available", progress(func(d *appsv1.Deployment) {
		d.Status.UnavailableReplicas, d.Status.AvailableReplicas, d.Status.ReadyReplicas = 0, 1, 1
		d.Status.Conditions = append(d.Status.Conditions, appsv1.DeploymentCondition{Type: "Available", Status: "True"})
	}))
	s.add("deployment+status+revision-2", progress(func(d *appsv1.Deployment) {
		d.Annotations["deployment.kubernetes.io/revision"] = "2"
		d.Status.UpdatedReplicas = 1
	}))
	s.add("deployment+status+annotated", progress(func(d *appsv1.Deployment) {
		d.Annotations["example.com/team"] = "red"
		d.Status.UpdatedReplicas = 1
	}))
	s.add("deployment+status+collision", progress(func(d *appsv1.Deployment) { d.Status.CollisionCount = &one }))
	s.add("deployment+status+scaled", progress(func(d *appsv1.Deployment) { two := int32(2); d.Spec.Replicas = &two; d.Generation = 2 }))

	rs := func(o *metav1.OwnerReference) *appsv1.ReplicaSet {
		return &appsv1.ReplicaSet{ObjectMeta: meta("web-5d4f8c7b9", o),
			Spec: appsv1.ReplicaSetSpec{Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, Template: template}}
	}
	for name, o := range map[string]*metav1.OwnerReference{"replicaset": owner("apps/v1", "Deployment"), "replicaset-bare": nil} {
		r := rs(o)
		s.add(name, r)
		r = r.DeepCopy()
		r.Status = appsv1.ReplicaSetStatus{Replicas: 1, FullyLabeledReplicas: 1, ObservedGeneration: 1}
		r.ManagedFields = append(r.ManagedFields, managed("kube-controller-manager", "status", 1))
		s.add(name+"+status", r)
		r = r.DeepCopy()
		zero := int32(0)
		r.Spec.Replicas, r.Generation = &zero, 2
		s.add(name+"+status+scaled", r)
	}

	node := &corev1.Node{ObjectMeta: meta("node-1", nil), Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0/24"}}
	node.Namespace = ""
	heartbeat := func(seconds int, change func(*corev1.Node)) *corev1.Node {
		n := node.DeepCopy()
		room := corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("16Gi"), "pods": resource.MustParse("110")}
		n.Status = corev1.NodeStatus{Capacity: room, Allocatable: room,
			Conditions: []corev1.NodeCondition{
				{Type: "NetworkUnavailable", Status: "False", Reason: "RouteCreated", LastHeartbeatTime: at(1), LastTransitionTime: at(1)},
				{Type: "MemoryPressure", Status: "False", LastHeartbeatTime: at(seconds), LastTransitionTime: at(1)},
				{Type: "Ready", Status: "True", Reason: "KubeletReady", LastHeartbeatTime: at(seconds), LastTransitionTime: at(1)}},
			Addresses: []corev1.NodeAddress{{Type: "InternalIP", Address: "10.0.0.1"}},
			NodeInfo:  corev1.NodeSystemInfo{KubeletVersion: "v1", OperatingSystem: "linux", Architecture: "amd64"},
			Images:    []corev1.ContainerImage{{Names: []string{"registry.example/web:1"}, SizeBytes: 1000}}}
		change(n)
		return n
	}
	s.add("node", node)
	s.add("node+status", heartbeat(1, func(*corev1.Node) {}))
	s.add("node+status-later", heartbeat(300, func(*corev1.Node) {}))
	s.add("node+status+images", heartbeat(300, func(n *corev1.Node) { n.Status.Images = nil }))
	s.add("node+status+attached", heartbeat(300, func(n *corev1.Node) {
		n.Status.VolumesAttached = []corev1.AttachedVolume{{Name: "disk", DevicePath: "/dev/sdb"}}
	}))
	s.add("node+status+in-use", heartbeat(300, func(n *corev1.Node) { n.Status.VolumesInUse = []corev1.UniqueVolumeName{"disk"} }))
	s.add("node+status+capacity", heartbeat(300, func(n *corev1.Node) { n.Status.Capacity["example.com/dongle"] = resource.MustParse("4") }))
	s.add("node+status+network", heartbeat(300, func(n *corev1.Node) { n.Status.Conditions[0].Status = "True" }))
	s.add("node+status+tainted", heartbeat(300, func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: "NoSchedule"}} }))

	lease := func(seconds int, change func(*coordinationv1.Lease)) *coordinationv1.Lease {
		holder, duration, transitions := "node-1", int32(40), int32(3)
		renewed := metav1.NewMicroTime(day.Add(time.Duration(seconds) * time.Second))
		acquired := metav1.NewMicroTime(day)
		l := &coordinationv1.Lease{ObjectMeta: meta("node-1", nil), Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder,
			LeaseDurationSeconds: &duration, AcquireTime: &acquired, RenewTime: &renewed, LeaseTransitions: &transitions}}
		l.ManagedFields = []metav1.ManagedFieldsEntry{managed("kubelet", "", seconds)}
		change(l)
		return l
	}
	s.add("lease", lease(1, func(*coordinationv1.Lease) {}))
	s.add("lease+renewed", lease(11, func(*coordinationv1.Lease) {}))
	s.add("lease+taken", lease(11, func(l *coordinationv1.Lease) {
		holder, transitions := "node-2", int32(4)
		l.Spec.HolderIdentity, l.Spec.LeaseTransitions = &holder, &transitions
	}))
	s.add("lease+taken-again", lease(11, func(l *coordinationv1.Lease) { transitions := int32(4); l.Spec.LeaseTransitions = &transitions }))
	s.add("lease+released", lease(11, func(l *coordinationv1.Lease) {
		holder, duration := "", int32(1)
		l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds = &holder, &duration
	}))
	s.add("lease+longer", lease(11, func(l *coordinationv1.Lease) { duration := int32(60); l.Spec.LeaseDurationSeconds = &duration }))
	s.add("lease+labelled", lease(11, func(l *coordinationv1.Lease) { l.Labels["a"] = "b" }))
	// Not in 1.28: chosen by the control plane.
	elected := lease(1, func(*coordinationv1.Lease) {})
	if strategy := reflect.ValueOf(&elected.Spec).Elem().FieldByName("Strategy"); strategy.IsValid() {
		fill(strategy, 0)
		s.add("lease-elected", elected)
		elected = elected.DeepCopy()
		renewed := metav1.NewMicroTime(day.Add(11 * time.Second))
		elected.Spec.RenewTime = &renewed
		s.add("lease-elected+renewed", elected)
	}

	s.add("event", &corev1.Event{ObjectMeta: meta("web.1", nil), Reason: "Scheduled", Message: "assigned", Type: "Normal", Count: 1,
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "web"}, FirstTimestamp: at(1), LastTimestamp: at(1)})
	job := &batchv1.Job{ObjectMeta: meta("batch", nil), Spec: batchv1.JobSpec{Completions: &one, Template: template}}
	s.add("job", job)
	job = job.DeepCopy()
	job.Status.Succeeded = 1
	s.add("job+status", job)
	s.add("endpoints", &corev1.Endpoints{ObjectMeta: meta("10.0.0.1", nil), Subsets: []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: "10.0.0.1"}}}}})
	s.add("configmap", &corev1.ConfigMap{ObjectMeta: meta("config", nil), Data: map[string]string{"a": "b"}})
	s.add("secret", &corev1.Secret{ObjectMeta: meta("secret", nil), Data: map[string][]byte{"a": []byte("b")}})

	lines := strings.Split(strings.TrimSuffix(s.lines.String(), "\n"), "\n")
	sort.Strings(lines)
	return []byte(strings.Join(lines, "\n") + "\n")
}
